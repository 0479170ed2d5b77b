"""The training loop on a linear model: what is cut off ends as if nothing had happened."""

import contextlib
import errno
import functools
import gzip
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from launch.errors import Diverged, InputError
from launch.runtime import app
from launch.runtime.checkpoints import checkpoint, seals
from launch.runtime.checkpoints.inference import latest_step
from launch.runtime.devices.mesh import make_mesh, with_shardings
from launch.runtime.state import abstract_state
from launch.runtime.training import loop
from launch.runtime.training.loop import check_training
from launch.runtime.training.metrics import column, read_metrics
from launch.runtime.training.training_log import ending
from tests.support import toy
from tests.support.checkpoint_states import RUN_NAME
from tests.support.toy import CONFIG, MEASURED, PowerCut, changed, leaves, train

NORMS = {"gradient_norm", "update_norm"}


def metrics(workdir):
    """Lines of what does not depend on the machine."""
    lines = [
        {name: value for name, value in line.items() if name not in MEASURED}
        for line in read_metrics(workdir)
    ]
    return [line for line in lines if set(line) != {"step"}]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, leaves(train(workdir))


def assert_as_whole(whole, workdir, state):
    for ours, theirs in zip(leaves(state), whole[1], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert metrics(workdir) == metrics(whole[0])


def test_what_a_run_leaves(whole):
    workdir, _ = whole
    # Losses at every second step and before a checkpoint, evaluations behind them.
    lines = [(line["step"], set(line) - {"step"}) for line in metrics(workdir)]
    assert lines == [
        (2, {"loss", *NORMS}),
        (3, {"loss", *NORMS}),
        (4, {"loss", *NORMS}),
        (4, {"distance"}),
        (6, {"loss", *NORMS}),
        (8, {"loss", *NORMS}),
        (8, {"distance"}),
    ]
    steps, losses = column(metrics(workdir), "loss")
    assert steps.tolist() == [2, 3, 4, 6, 8] and len(set(losses)) == 5
    assert column(metrics(workdir), "nothing")[0].size == 0
    folders = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    assert folders == ["6", "8"] and latest_step(workdir) == 8
    assert any(path.name.startswith("events.out.tfevents") for path in workdir.iterdir())
    assert not (workdir / "best").exists() and not (workdir / "profile").exists()


def test_what_a_run_measures(whole):
    lines = read_metrics(whole[0])
    for name, steps in {
        "first_step_seconds": [2],
        "step_seconds": [2, 3, 4, 6, 8],
        "images_per_second": [2, 3, 4, 6, 8],
        "data_wait": [2, 3, 4, 6, 8],
        "host_peak_bytes": [2, 3, 4, 6, 8],
        "evaluation_seconds": [4, 8],
        "checkpoint_seconds": [3, 6, 8],
        "pictures_seconds": [],
        "share_of_peak": [],  # nobody says what the peak of a CPU is
    }.items():
        found, values = column(lines, name)
        assert found.tolist() == steps and (values >= 0).all(), name
    seconds, images = column(lines, "step_seconds")[1], column(lines, "images_per_second")[1]
    np.testing.assert_allclose(seconds * images, 4.0)
    waits = column(lines, "data_wait")[1]
    assert (waits <= 1).all() and waits.max() > 0


@pytest.mark.parametrize("cut", [0, 2, 3, 5, 7])
def test_cut_off_and_run_again(whole, tmp_path, cut):
    with pytest.raises(PowerCut):
        train(tmp_path, cut=cut)
    assert latest_step(tmp_path) == {0: None, 2: None, 3: 3, 5: 3, 7: 6}[cut]
    assert_as_whole(whole, tmp_path, train(tmp_path))


@pytest.mark.parametrize("cut", [4, 7])
def test_cut_off_before_the_checkpoint_is_sealed(whole, tmp_path, cut):
    """As kill -9 leaves it: the newest checkpoint without digests, and half a line of metrics."""
    with pytest.raises(PowerCut):
        train(tmp_path, cut=cut)
    newest = tmp_path / "checkpoints" / str(latest_step(tmp_path))
    for part in newest.glob("digests*.json"):
        part.unlink()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')
    assert_as_whole(whole, tmp_path, train(tmp_path))


def test_resuming_shows_where_it_is(tmp_path, capsys):
    with pytest.raises(PowerCut):
        train(tmp_path, cut=7)
    capsys.readouterr()
    train(tmp_path)
    # Not on a terminal: a line each time that metrics are logged, and no bar.
    shown = capsys.readouterr().err
    assert "\r" not in shown
    lines = [line for line in shown.splitlines() if line.startswith("toy: ")]
    assert lines[:2] == ["toy: 6/8 steps", "toy: compiling the first step"] and len(lines) == 6
    assert re.fullmatch(r"toy: compiled in \d+ s", lines[2])
    assert lines[3].startswith("toy: 8/8 steps, loss=") and lines[3].endswith(" images/s")
    assert lines[4].startswith("toy: productive ") and " in 2 attempts: " in lines[4]
    assert lines[5] == f"toy: done, in {tmp_path}"


def test_the_last_line_has_last_and_best_numbers(tmp_path):
    losses, accuracies = (0.5, 0.25, 0.375), (0.1, 0.9, 0.8)
    rows = zip((2, 4, 6), losses, accuracies, strict=True)
    lines = [dict(step=k, validation_loss=x, validation_accuracy=y) for k, x, y in rows]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert ending(epath.Path(tmp_path), "base") == (
        f"base: done, in {tmp_path}; validation loss 0.375 (best 0.25 at step 4), "
        "validation accuracy 0.8 (best 0.9 at step 4)"
    )


def test_the_bar_of_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    train(tmp_path)
    shown = [line for line in capsys.readouterr().err.split("\r") if line.startswith("toy: ")]
    assert " 0/8 " in shown[0] and " 8/8 " in shown[-1]
    assert "loss=" in shown[-1] and "images/s" in shown[-1]
    assert not any("steps" in line for line in shown)


def test_a_complete_run_is_not_trained_again(whole, capsys):
    workdir, state = whole

    def never(*args):
        raise AssertionError("trained again")

    def contents():
        paths = (path for path in workdir.rglob("*") if path.is_file())
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}

    before = contents()
    again = train(workdir, train_step=never, cut=8)
    for ours, theirs in zip(leaves(again), state, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert contents() == before
    assert capsys.readouterr().err == f"toy: done, in {workdir}\n"


def test_a_longer_run_goes_on(whole, tmp_path):
    train(tmp_path, changed(total_steps=3))
    assert latest_step(tmp_path) == 3
    state = train(tmp_path)
    for ours, theirs in zip(leaves(state), whole[1], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_intervals_of_zero(tmp_path):
    train(tmp_path, changed(total_steps=3, log_every=0, checkpoint_every=0, evaluate_every=0))
    assert [(line["step"], "loss" in line) for line in metrics(tmp_path)] == [(3, True), (3, False)]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]


def test_keeps_as_many_checkpoints_as_it_is_told(tmp_path):
    train(tmp_path, changed(checkpoint_every=1, keep_checkpoints=3))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["6", "7", "8"]


def test_batches_are_put_on_the_device_while_steps_run_but_not_dozens(tmp_path, monkeypatch):
    losses, under_way, put_batch = [], [], loop.put_batch

    def put(mesh, batch):
        batch = put_batch(mesh, batch)
        under_way.append(sum(not loss.is_ready() for loss in losses))
        return batch

    @functools.partial(jax.jit, donate_argnums=0)
    def slow(state, batch):
        state, found = toy.train_step(state, batch)
        square = jnp.full((900, 900), found["loss"])
        return state, {**found, "loss": (square @ square @ square).mean()}

    def train_step(state, batch):
        state, found = slow(state, batch)
        losses.append(found["loss"])
        return state, found

    monkeypatch.setattr(loop, "put_batch", put)
    config = changed(total_steps=12, log_every=0, checkpoint_every=0, evaluate_every=0)
    train(tmp_path, config, train_step=train_step)
    assert len(under_way) == 12 and 1 <= max(under_way) <= 2


def test_a_state_is_saved_as_it_was_while_training_goes_on(tmp_path):
    """The steps donate what is still being written: 24 MB here."""

    def init(key):
        return {"params": {"w": jax.random.normal(key, (2**21,))}}

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state, batch):
        variables = jax.tree.map(lambda w: w * 0.5 + 1, state.variables)
        return state.replace(step=state.step + 1, variables=variables), {"loss": batch["x"].sum()}

    config = changed(total_steps=20, checkpoint_every=5, log_every=0)
    with pytest.raises(PowerCut):
        train(tmp_path, config, init=init, train_step=train_step, evaluate=None, cut=9)
    mesh = make_mesh({"data": -1})
    abstract = abstract_state(init, (jax.random.key(0),), toy.TX, toy.DECAYS)
    with contextlib.closing(
        checkpoint.Checkpoints(tmp_path / "checkpoints", RUN_NAME)
    ) as checkpoints:
        state = checkpoints.restore(with_shardings(mesh, abstract))
    expected = np.asarray(init(jax.random.key(0))["params"]["w"])
    np.testing.assert_array_equal(state.ema["main"]["params"]["w"], expected)
    for _ in range(5):
        expected = expected * np.float32(0.5) + np.float32(1)
    np.testing.assert_array_equal(state.variables["params"]["w"], expected)
    assert int(state.step) == 5


def test_the_best_is_kept(tmp_path, monkeypatch):
    distances = iter([3.0, 1.0, 2.0, 1.5])
    config = changed(evaluate_every=2, best=dict(metric="distance", mode="min"))
    train(tmp_path, config, evaluate=lambda state: {"distance": next(distances)})
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["4"]
    assert latest_step(tmp_path) == 8


def test_the_best_is_sealed_before_the_newest_is_saved(tmp_path, monkeypatch):
    """A run that goes on from the newest does not evaluate that step again."""
    sealed = []

    def save(self, state):
        best = tmp_path / "best" / str(int(state.step))
        sealed.append((int(state.step), seals.is_sealed(best)))
        real(self, state)

    real = checkpoint.Checkpoints.save
    monkeypatch.setattr(checkpoint.Checkpoints, "save", save)
    config = changed(evaluate_every=4, checkpoint_every=4, best=dict(metric="distance"))
    distances = iter([3.0, 1.0])
    train(tmp_path, config, evaluate=lambda state: {"distance": next(distances)})
    assert sealed == [(4, True), (8, True)]


def draw(state):
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([0, int(state.step)])
    return figure


def test_pictures(tmp_path):
    train(tmp_path, changed(pictures_every=3), pictures=draw)
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == ["step_3.png", "step_6.png", "step_8.png"]
    contents = [(tmp_path / "pictures" / name).read_bytes() for name in names]
    assert len(set(contents)) == 3 and all(png.startswith(b"\x89PNG") for png in contents)
    steps, seconds = column(read_metrics(tmp_path), "pictures_seconds")
    assert steps.tolist() == [3, 6, 8] and (seconds > 0).all()


@pytest.mark.parametrize("fields", [{}, {"pictures_every": 0}])
def test_no_pictures(tmp_path, fields):
    train(tmp_path, changed(total_steps=2, **fields), pictures=draw)
    assert not (tmp_path / "pictures").exists()


def test_order_of_a_step(tmp_path, monkeypatch):
    done = []

    def noted(name, work):
        def call(*args):
            done.append(name)
            return work(*args)

        return call

    def batches(start, stop):
        for batch in toy_batches(start, stop):
            done.append("batch")
            yield batch

    toy_batches = toy.batches
    monkeypatch.setattr(toy, "batches", batches)
    monkeypatch.setattr(checkpoint.Checkpoints, "save", noted("save", checkpoint.Checkpoints.save))
    train(
        tmp_path,
        changed(total_steps=4, checkpoint_every=2, evaluate_every=2, pictures_every=2),
        train_step=noted("step", toy.train_step),
        evaluate=noted("evaluate", toy.evaluate),
        pictures=noted("pictures", draw),
    )
    assert done == ["batch", "step", "batch", "step", "evaluate", "pictures", "save"] * 2


def test_a_profile_of_some_steps(tmp_path):
    config = changed(total_steps=6, profile=dict(start=3, steps=2))
    train(tmp_path, config)
    (trace,) = (tmp_path / "profile").rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    traced = [event["args"]["step_num"] for event in events if event.get("name") == "train"]
    assert traced == ["3", "4"]
    # What was traced once is not traced again, nor is a window that lies behind.
    for path in (tmp_path / "profile").rglob("*.gz"):
        path.unlink()
    train(tmp_path, changed(total_steps=8, profile=dict(start=3, steps=5)))
    assert not list((tmp_path / "profile").rglob("*.gz"))


def test_a_profile_ends_with_the_run(tmp_path):
    with pytest.raises(PowerCut):
        train(tmp_path, changed(profile=dict(start=2, steps=100)), cut=4)
    assert len(list((tmp_path / "profile").rglob("*.trace.json.gz"))) == 1
    jax.profiler.start_trace(tmp_path / "another")  # it would refuse a second one
    jax.profiler.stop_trace()


def test_a_diverged_run_keeps_the_checkpoints_before(whole, tmp_path):
    # Nobody looks at step 5; step 6 is looked at before it is saved, and 5 found to be the first.
    with pytest.raises(Diverged, match=f"{tmp_path}: the loss of step 5 is nan") as error:
        train(tmp_path, nan=4)
    assert "\n" not in str(error.value) and "(batch 4; " in str(error.value)
    assert f"newest good checkpoint: {tmp_path}/checkpoints/3)" in str(error.value)
    assert latest_step(tmp_path) == 3
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]
    assert metrics(tmp_path) == [line for line in metrics(whole[0]) if line["step"] <= 4]
    assert_as_whole(whole, tmp_path, train(tmp_path))


def with_metrics(found_at):
    """The toy's step with other metrics at some steps."""

    def train_step(state, batch):
        state, found = toy.train_step(state, batch)
        return state, {**found, **found_at.get(int(state.step), {})}

    return train_step


@pytest.mark.parametrize("name", ["gradient_norm", "update_norm"])
def test_norms_that_are_not_finite(tmp_path, name):
    step = with_metrics({3: {name: jnp.inf}})
    said = f"the {name.replace('_', ' ')} of step 3 is inf \\(batch 2; .*checkpoint: none"
    with pytest.raises(Diverged, match=said):
        train(tmp_path, train_step=step)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_levels_of_noise_that_are_not_finite(tmp_path):
    levels = jnp.array([0.1, jnp.nan, 0.3, jnp.inf])
    step = with_metrics({2: {"loss": jnp.nan, "loss_by_level": levels}})
    with pytest.raises(Diverged, match=r"step 2 is nan; .*: loss_by_level/1, loss_by_level/3 "):
        train(tmp_path, train_step=step)


def test_a_validation_loss_that_is_not_finite(tmp_path):
    losses = iter([1.0, np.nan])
    with pytest.raises(Diverged, match="the validation loss of step 8 is nan"):
        train(tmp_path, evaluate=lambda state: {"validation_loss": next(losses)})
    assert latest_step(tmp_path) == 6


def test_what_was_not_finite_for_a_while_does_not_stop_a_run(tmp_path):
    """As with optax.apply_if_finite, when the steps that are looked at are finite again."""
    train(tmp_path, train_step=with_metrics({5: {"gradient_norm": jnp.inf}}))
    assert latest_step(tmp_path) == 8


def test_diverged_right_after_a_checkpoint(tmp_path, capsys):
    config_file = tmp_path / "config.py"
    config_file.write_text(
        "from ml_collections import ConfigDict\n"
        f"def get_config():\n    return ConfigDict({CONFIG.to_dict()!r})\n"
    )
    run = tmp_path / "run"
    argv = ["task", f"--config={config_file}", f"--workdir={run}"]
    with pytest.raises(SystemExit) as ended:
        app.run(lambda args: train(args.workdir, args.config, nan=3), "", argv=argv)
    assert ended.value.code == 1
    # The line stands by itself, below the progress.
    lines = capsys.readouterr().err.split("\n")
    assert lines[-1] == "" and lines[-2].startswith("error: ")
    # The checkpoint of step 3 was still being written when step 4 failed.
    assert "the loss of step 4 is nan" in lines[-2] and f"{run}/checkpoints/3)" in lines[-2]
    assert latest_step(run) == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(total_steps=0), r"config\.total_steps must be at least 1, got 0"),
        (dict(batch_size=0), r"config\.batch_size must be at least 1, got 0"),
        (dict(seed=-1), r"config\.seed must be at least 0, got -1"),
        (dict(seeds=0), r"config\.seeds must be at least 1, got 0"),
        (dict(seed=2**32), r"config\.seed must be at most 4294967295, got 4294967296"),
        (dict(batch_size=10**13), r"config\.batch_size must be at most"),
        (dict(batch_size=2.5), r"config\.batch_size must be an integer, got 2\.5"),
        (dict(keep_checkpoints=0), r"config\.keep_checkpoints must be at least 1, got 0"),
        (dict(keep_checkpoints=-1), r"config\.keep_checkpoints must be at least 1, got -1"),
        (dict(log_every=-1), r"config\.log_every must be at least 0"),
        (dict(checkpoint_every=-1), r"config\.checkpoint_every must be at least 0"),
        (dict(evaluate_every=-1), r"config\.evaluate_every must be at least 0"),
        (dict(pictures_every=-1), r"config\.pictures_every must be at least 0"),
        (dict(profile=dict(start=-1)), r"config\.profile\.start must be at least 0"),
        (dict(profile=dict(steps=-2)), r"config\.profile\.steps must be at least 0"),
        (dict(profile=dict(first=1)), r"config\.profile has no field 'first'"),
    ],
)
def test_numbers_that_cannot_work(changes, said):
    config = dict(total_steps=1, batch_size=1)
    check_training(ConfigDict(config), make_mesh({"data": -1}))
    with pytest.raises(InputError, match=said):
        check_training(ConfigDict(config | changes), make_mesh({"data": -1}))


def test_all_that_is_open_is_closed(tmp_path, monkeypatch):
    """What fails to close keeps nothing else open; meanwhile no watch ends the process."""
    closed, close = [], checkpoint.Checkpoints.close

    @contextlib.contextmanager
    def finishing():
        closed.append("watch waits")
        yield

    monkeypatch.setattr(loop.peers, "finishing", finishing)

    def fail(best):
        closed.append("best")
        raise OSError(errno.EIO, "Input/output error", "best")

    monkeypatch.setattr(checkpoint.Best, "close", fail)
    monkeypatch.setattr(
        checkpoint.Checkpoints, "close", lambda own: (closed.append("checkpoints"), close(own))
    )
    with pytest.raises(OSError, match="best"):
        train(tmp_path, changed(best=dict(metric="distance", mode="min")))
    assert closed[0] == "watch waits" and sorted(closed[1:]) == ["best", "checkpoints"]


def test_a_metric_has_an_interval_of_its_own_and_chooses_the_best(tmp_path):
    """It is the best at step 3, which a run that was cut off behind it remembers."""

    def metric(state):
        return {"sampled_fd": abs(int(state.step) - 3.5)}

    best, own = dict(metric="sampled_fd", mode="min"), dict(every=3)
    config = changed(evaluate_every=2, best=best, evaluation_metric=own)
    with pytest.raises(PowerCut):
        train(tmp_path, config, cut=7, metric=metric)
    train(tmp_path, config, metric=metric)
    steps, values = column(read_metrics(tmp_path), "sampled_fd")
    assert (steps.tolist(), values.tolist()) == ([3, 6, 8], [0.5, 2.5, 4.5])
    assert column(read_metrics(tmp_path), "distance")[0].tolist() == [2, 4, 6, 8]
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["3"]
    assert "sampled fd 4.5 (best 0.5 at step 3)" in ending(epath.Path(tmp_path), "base")
