"""Numbers and pictures on their way to files; times, memory and FLOPs as they are measured."""

import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from matplotlib.figure import Figure
from tensorboardX.proto.event_pb2 import Event

from input_pipeline.records.tfrecord import TFRecordFile
from launch.runtime.checkpoints.checkpoint import Checkpoints
from launch.runtime.devices.flops import count_flops
from launch.runtime.devices.hardware import CHIPS
from launch.runtime.training import performance
from launch.runtime.training.metrics import MetricWriter, column, read_metrics, to_scalars
from launch.runtime.training.performance import StepTimer, floor_seconds, memory
from tests.support import ROOT, toy


def events(workdir):
    """TensorBoard's events, in the order of the files."""
    for path in sorted(Path(workdir).glob("events.out.tfevents*")):
        for record in TFRecordFile(path):
            yield Event.FromString(record)


def values(workdir):
    return [(event.step, value) for event in events(workdir) for value in event.summary.value]


def test_vectors_become_numbered_scalars():
    found = to_scalars(
        {"loss": jnp.float32(0.5), "by_level": jnp.array([1.0, jnp.nan, jnp.inf]), "rate": 2}
    )
    assert found == {"loss": 0.5, "by_level/0": 1.0, "by_level/2": np.inf, "rate": 2.0}
    assert all(type(value) is float for value in found.values())
    # A scalar is somebody's result even where it is NaN.
    assert list(to_scalars({"loss": jnp.nan})) == ["loss"]


def test_numbers_go_to_both_files(tmp_path):
    writer = MetricWriter(epath.Path(tmp_path), 0)
    writer.write(1, {"loss": 0.5, "by_level/0": 0.25})
    # Whoever looks while the run goes on sees the line.
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.5, "by_level/0": 0.25}]
    writer.close()
    found = [(step, value.tag, value.simple_value) for step, value in values(tmp_path)]
    assert found == [(1, "loss", 0.5), (1, "by_level/0", 0.25)]


def test_lines_after_the_resumed_step_are_dropped(tmp_path):
    writer = MetricWriter(epath.Path(tmp_path), 0)
    for step in range(1, 6):
        writer.write(step, {"loss": float(step)})
    writer.close()
    writer = MetricWriter(epath.Path(tmp_path), 3)
    writer.write(4, {"loss": 40.0})
    writer.close()
    steps, losses = column(read_metrics(tmp_path), "loss")
    assert steps.tolist() == [1, 2, 3, 4] and losses.tolist() == [1, 2, 3, 40]


def test_a_picture_is_a_file_and_among_the_images(tmp_path):
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1])
    writer = MetricWriter(epath.Path(tmp_path), 0)
    writer.picture(7, figure)
    writer.close()
    png = (tmp_path / "pictures" / "step_7.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    ((step, value),) = values(tmp_path)
    assert step == 7 and value.image.encoded_image_string == png
    height, width, channels = cv2.imdecode(np.frombuffer(png, np.uint8), -1).shape
    assert (value.image.height, value.image.width) == (height, width)
    assert value.image.colorspace == channels == 4


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    writer = MetricWriter(epath.Path(tmp_path), 0)
    writer.write(1, {"loss": 0.5})
    writer.picture(1, Figure())
    writer.attempt("{}\n")
    writer.close()
    assert not list(tmp_path.iterdir())


def test_a_crash_while_writing_metrics(tmp_path):
    whole_line = json.dumps({"step": 1, "loss": 0.5})
    (tmp_path / "metrics.jsonl").write_text(whole_line + '\n{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.5}]


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b'{"step": 2, "loss": 0.',
        b'{"step": 2, "loss": 0.5}}',
        b'{"step": 2, "l\xffss": 0.5}',
        b"[" * 100_000,
        b"2",
        b"null",
        b"[2]",
        b'{"loss": 0.5}',
        b'{"step": null, "loss": 0.5}',
        b'{"step": "2", "loss": 0.5}',
        b'{"step": 2.5, "loss": 0.5}',
        b'{"step": NaN, "loss": 0.5}',
        b'{"step": true, "loss": 0.5}',
        b'{"step": -2, "loss": 0.5}',
        b'{"step": 1' + 30 * b"0" + b"}",
        b'{"step": 1' + 5000 * b"0" + b"}",
        b'{"step": 2, "loss": 1' + 400 * b"0" + b"}",
        b'{"step": 2, "loss": "0.5"}',
        b'{"step": 2, "loss": [0.5]}',
    ],
    ids=lambda line: line[:24].decode(errors="replace"),
)
def test_damaged_lines_are_set_aside_and_counted(tmp_path, capsys, damaged):
    path, nan = tmp_path / "metrics.jsonl", b'{"step": 3, "loss": NaN}'
    path.write_bytes(b"\n".join([b'{"step": 1, "loss": 4}', damaged, nan, damaged, b""]))
    steps, losses = column(read_metrics(tmp_path), "loss")
    np.testing.assert_array_equal([steps, losses], [[1, 3], [4, np.nan]])
    assert capsys.readouterr().err == f"{path}: 2 damaged lines are skipped\n"
    for _ in range(2):  # Nothing of it is lost, and it is told once.
        MetricWriter(epath.Path(tmp_path), 3).close()
    assert path.read_bytes() == b'{"step": 1, "loss": 4}\n' + nan + b"\n"
    assert (tmp_path / "metrics.damaged").read_bytes() == 2 * (damaged + b"\n")
    said = f"{path}: 2 damaged lines are moved to metrics.damaged\n"
    assert capsys.readouterr().err == said


def test_a_run_that_goes_on_without_its_metrics_says_so(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    MetricWriter(epath.Path(tmp_path), 0).close()  # a run that begins
    assert not capsys.readouterr().err
    rest = "the metrics up to step 3 are lost, training continues\n"
    MetricWriter(epath.Path(tmp_path), 3).close()
    assert capsys.readouterr().err == f"{path} has no numbers: {rest}"
    path.unlink()
    MetricWriter(epath.Path(tmp_path), 3).close()
    assert capsys.readouterr().err == f"{path} is missing: {rest}"


def test_lines_are_whole_after_a_kill(tmp_path):
    program = (
        "import sys, itertools; from etils import epath\n"
        "from launch.runtime.training.metrics import MetricWriter\n"
        "writer = MetricWriter(epath.Path(sys.argv[1]), 0)\n"
        "for step in itertools.count(1):\n"
        "    writer.write(step, {f'name_{i}': step + i / 7 for i in range(40)})\n"
        "    print(step, flush=True)\n"
    )
    command = [sys.executable, "-c", program, tmp_path]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        told = 0
        while told < 20:
            told = int(child.stdout.readline())
        child.kill()
        told = max([told, *(int(line) for line in child.stdout.read().splitlines())])
    lines = read_metrics(tmp_path)
    assert len(lines) >= told
    for step, line in enumerate(lines, start=1):
        assert line == {"step": step} | {f"name_{i}": step + i / 7 for i in range(40)}
    # The line that the kill has met, if any, was the last.
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) - len(lines) in (0, 1)


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(performance.time, "perf_counter", lambda: self.now)


def test_times_of_steps(monkeypatch):
    clock = Clock(monkeypatch)
    timer = StepTimer()
    timer.start(images=32, floor_seconds=0.5)
    assert timer.started and not timer.running
    clock.now += 60  # compiles
    timer.waited += 7.0  # belongs to the first step
    timer.paused += 7.0
    timer.run(301)
    assert timer.running
    clock.now += 30
    timer.waited += 5.0
    timer.paused += 10.0
    assert timer.lap(311) == {
        "first_step_seconds": 60.0,
        "step_seconds": 2.0,
        "images_per_second": 16.0,
        "data_wait": 0.25,
        "share_of_peak": 0.25,
    }
    clock.now += 4
    assert timer.lap(312) == {
        "step_seconds": 4.0,
        "images_per_second": 8.0,
        "data_wait": 0.0,
        "share_of_peak": 0.125,
    }


def test_the_first_step_alone_has_no_speed(monkeypatch):
    clock = Clock(monkeypatch)
    timer = StepTimer()
    timer.start(images=32, floor_seconds=None)
    clock.now += 3
    timer.run(1)
    clock.now += 1
    assert timer.lap(1) == {"first_step_seconds": 3.0}
    clock.now += 2
    assert "share_of_peak" not in timer.lap(2)


def test_evaluations_pictures_and_saving_are_not_in_the_times_of_steps(tmp_path, monkeypatch):
    clock = Clock(monkeypatch)

    def train_step(state, batch):
        clock.now += 1
        return toy.train_step(state, batch)

    def evaluate(state):
        clock.now += 1000
        return toy.evaluate(state)

    def draw(state):
        clock.now += 500
        return Figure(figsize=(1, 1))

    def save(self, state):
        clock.now += 300
        real(self, state)

    real = Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", save)
    config = toy.changed(evaluate_every=4, pictures_every=4, checkpoint_every=4)
    toy.train(tmp_path, config, train_step=train_step, evaluate=evaluate, pictures=draw)
    lines = read_metrics(tmp_path)
    # Steps 2 and 6 are read one step late: they get a second of the next one.
    steps, seconds = column(lines, "step_seconds")
    assert steps.tolist() == [2, 4, 6, 8] and seconds.tolist() == [2.0, 0.5, 1.5, 0.5]
    assert column(lines, "evaluation_seconds")[1].tolist() == [1000, 1000]
    assert column(lines, "pictures_seconds")[1].tolist() == [500, 500]
    assert column(lines, "checkpoint_seconds")[1].tolist() == [300, 300]


CHIP = dataclasses.replace(CHIPS[0], peak_flops=1e6)


def test_floor_of_a_step(monkeypatch, caplog):
    traced = []

    @jax.jit
    def multiply(state, batch):
        traced.append(1)
        return state @ batch["x"], {}

    args = jnp.ones((10, 30)), {"x": jnp.ones((30, 20))}
    assert floor_seconds(multiply, *args) is None  # a CPU
    monkeypatch.setattr(performance, "chip_of", lambda device: CHIP)
    assert floor_seconds(lambda *args: multiply(*args), *args) is None
    with jax.log_compiles(), caplog.at_level("WARNING"):
        assert floor_seconds(multiply, *args) == pytest.approx(2 * 10 * 30 * 20 / 1e6)
        assert "Finished XLA compilation" not in caplog.text
        multiply(*args)
    assert len(traced) == 1
    assert caplog.text.count("Finished XLA compilation of jit(multiply)") == 1


CONVOLUTIONS = {
    "padded": dict(padding="SAME"),
    "strided": dict(padding="SAME", window_strides=(2, 2)),
    "transposed": dict(padding=((1, 2), (2, 0)), lhs_dilation=(2, 2)),
    "dilated": dict(padding="SAME", rhs_dilation=(2, 2)),
    "in groups": dict(padding="VALID", feature_group_count=4),
    "groups of images": dict(padding="SAME", batch_group_count=2),
    "all": dict(
        padding=((5, 5), (4, 4)),
        window_strides=(3, 2),
        lhs_dilation=(2, 3),
        rhs_dilation=(1, 2),
        feature_group_count=2,
    ),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_flops_of_convolutions_are_those_that_xla_counts(name):
    options = dict(window_strides=(1, 1)) | CONVOLUTIONS[name]

    def convolve(image, kernel):
        return jax.lax.conv_general_dilated(
            image, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
        )

    channels = 8 // options.get("feature_group_count", 1)
    args = jnp.ones((4, 9, 10, 8)), jnp.ones((3, 3, channels, 16))
    assert count_flops(convolve, *args) == jax.jit(convolve).lower(*args).cost_analysis()["flops"]


def test_flops_of_products_and_control_flow():
    square = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    one = 2.0 * 8**3

    def scanned(x):
        return jax.lax.scan(lambda carry, _: (carry @ x, None), x, None, length=5)[0]

    def branched(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    def repeated(x):
        return jax.lax.while_loop(lambda y: y[0, 0] > 0, lambda y: y @ x, x)

    def remade(x):
        return jax.grad(jax.checkpoint(lambda x: jnp.sin(jnp.sin(x @ x) @ x).sum()))(x)

    assert count_flops(lambda x: jnp.sin(x) + x, square) == 0
    assert count_flops(jax.jit(lambda x: x @ x), square) == one
    assert count_flops(scanned, square) == 5 * one
    assert count_flops(branched, square) == 2 * one
    assert count_flops(repeated, square) == one
    # Two forward, again two, and two backward of each.
    assert count_flops(remade, square) == 8 * one
    batched = jax.ShapeDtypeStruct((3, 4, 5), jnp.float32)
    product = "abc,adc->abd"
    assert count_flops(lambda x: jnp.einsum(product, x, x), batched) == 2 * 3 * 4 * 4 * 5


def test_share_of_peak_is_logged(tmp_path, monkeypatch):
    traced = []

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state, batch):
        traced.append(1)
        return toy.train_step(state, batch)

    monkeypatch.setattr(performance, "chip_of", lambda device: CHIP)
    toy.train(tmp_path, train_step=train_step)
    assert len(traced) == 1
    lines = read_metrics(tmp_path)
    steps, shares = column(lines, "share_of_peak")
    assert steps.tolist() == [2, 3, 4, 6, 8]
    flops = shares * column(lines, "step_seconds")[1] * 1e6
    np.testing.assert_allclose(flops, flops[0], rtol=1e-6)
    # Two products of [4, 3] and [3]: the forward pass, and the gradient of the weights.
    assert flops[0] == pytest.approx(2 * 2 * 4 * 3)


def test_memory(monkeypatch):
    class Device:
        def __init__(self, stats):
            self.stats = stats

        def memory_stats(self):
            return self.stats

    (name,) = memory()  # a CPU does not tell
    assert name == "host_peak_bytes" and 2**26 < memory()[name] < 2**40
    devices = [Device({"peak_bytes_in_use": 5}), Device({"peak_bytes_in_use": 9}), Device(None)]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert memory()["device_peak_bytes"] == 9
