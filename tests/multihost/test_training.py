"""Training in two processes: the losses of one; what one begins the other number ends."""

import json
import signal
import socket
import time

import pytest
from etils import epath

from launch.runtime.config import plain
from launch.runtime.run import Run
from launch.runtime.run_record import write_record
from tests.imagen_ft import tiny_training
from tests.multihost.processes import run_processes
from tests.support.tiny_runs import CLASSIFIER, DIFFUSION, SEEDS, finish

# Where tensor is split, two devices, of one process or of both, need the same rows.
CASES = [[[2, 2, 1], 2], [[4, 1, 1], 1], [[1, 2, 2], 1], [[2, 1, 2], 2], [[1, 1, 4], 1]]


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one():
    module = "tests.imagen_ft.training.training_devices"
    one, *_ = run_processes(module, "[[[1, 1, 1], 1]]", processes=1, devices=1)
    two = run_processes(module, json.dumps(CASES), processes=2, devices=2, timeout=900)
    (alone,) = one["found"]
    for process in two:
        assert process["devices"] == 4
        for run in process["found"]:
            assert run["losses"] == pytest.approx(alone["losses"], rel=1e-5)
            assert run["gradient_norms"] == pytest.approx(alone["gradient_norms"], rel=1e-5)


def start_two(workdir, *argv, run=DIFFUSION):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [run.start(workdir, *argv, process=p, port=port) for p in range(2)]


def same(ours, theirs):
    """Numbers of a step, some of which there are at other steps only."""
    for a, b in zip(ours, theirs, strict=True):
        assert a == (b if b is None else pytest.approx(b, rel=1e-4))


@pytest.mark.slow
def test_one_process_goes_on_where_two_were_killed(tmp_path_factory, tmp_path):
    alone = tmp_path_factory.mktemp("alone")
    finish(DIFFUSION.start(alone))
    both = start_two(tmp_path)
    try:
        while not any((tmp_path / "checkpoints").glob("8/digests_1_of_2.json")):
            assert all(process.poll() is None for process in both), both[0].communicate()[0]
            time.sleep(0.01)
    finally:
        for process in both:
            process.send_signal(signal.SIGKILL)
            process.communicate()
    finish(DIFFUSION.start(tmp_path))
    expected, found = DIFFUSION.numbers(alone), DIFFUSION.numbers(tmp_path)
    assert len(found) == len(expected) == 24
    for ours, theirs in zip(found, expected, strict=True):
        same(ours, theirs)
    assert (tmp_path / "pictures" / "step_20.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("run", [CLASSIFIER, SEEDS], ids=["in turn", "at once"])
def test_two_processes_train_the_classifier_of_one(run, tmp_path):
    """From the first batch to the last evaluation, and what is left for others to read."""
    finish(run.start(tmp_path / "alone"))
    finish(*start_two(tmp_path / "both", run=run))
    expected, found = run.numbers(tmp_path / "alone"), run.numbers(tmp_path / "both")
    assert len(found) == len(expected) >= 20
    for ours, theirs in zip(found, expected, strict=True):
        same(ours, theirs)
    for seed in range(1 if run is CLASSIFIER else 2):
        both = Run.open(tmp_path / "both").seeds[seed]
        both.variables(both.shapes())
    assert (tmp_path / "both" / "learning_curves.png").exists()


@pytest.mark.slow
def test_an_error_of_the_first_process_is_told_by_both(tmp_path):
    write_record(epath.Path(tmp_path), plain(tiny_training.get_config()), inputs={})
    both = start_two(tmp_path, "--config.seed=5")
    outputs = [process.communicate(timeout=300)[0] for process in both]
    for process, output in zip(both, outputs, strict=True):
        assert process.returncode == 2, output
        (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
        assert "seed must be 0, as when" in line


@pytest.mark.slow
def test_two_processes_begin_with_the_weights_of_a_run(tmp_path):
    """What each of them restores of the other run becomes its part of the state."""
    few = ("--config.total_steps=2", "--config.log_every=1")
    finish(CLASSIFIER.start(tmp_path / "first", *few))
    begin = (*few, f"--config.init_from={tmp_path / 'first'}")
    finish(CLASSIFIER.start(tmp_path / "alone", *begin))
    finish(*start_two(tmp_path / "both", *begin, run=CLASSIFIER))
    expected = CLASSIFIER.numbers(tmp_path / "alone")
    found = CLASSIFIER.numbers(tmp_path / "both")
    assert len(found) == len(expected) >= 2
    for ours, theirs in zip(found, expected, strict=True):
        same(ours, theirs)
