"""SIGTERM while a process trains: it saves, says so, and the same command ends as if unstopped."""

import json
import os
import signal
import subprocess
import sys

import pytest

from launch.cli import exit_code
from launch.errors import Diverged, Failed, Preempted
from launch.goodput import read_attempts
from launch.runtime.checkpoints.inference import latest_step
from launch.runtime.training import preemption
from launch.runtime.training.metrics import column, read_metrics
from launch.runtime.training.preemption import Preemption
from tests.support import ROOT, toy


def start(workdir, **options):
    command = [sys.executable, "-W", "error", "-m", "tests.support.toy", workdir]
    return subprocess.run(
        [*command, json.dumps(options)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, toy.digest(toy.train(workdir))


def numbers(workdir, *names):
    lines = read_metrics(workdir)
    return [[found.tolist() for found in column(lines, name)] for name in names]


def test_sigterm_in_a_step_and_the_same_command_again(whole, tmp_path):
    preempted = start(tmp_path, faults=dict(sigterm=4))
    assert preempted.returncode == 75, preempted.stderr
    line = preempted.stderr.splitlines()[-1]
    assert line == f"preempted: {tmp_path} is saved at step 5: run the same command again"
    # Step 5 is neither logged nor saved in a run that is let alone.
    assert latest_step(tmp_path) == 5

    assert toy.digest(toy.train(tmp_path)) == whole[1]
    left, done = read_attempts(tmp_path)
    assert (left.end, left.exit_code, left.last_step) == ("preempted", 75, 5)
    assert (done.end, done.first_step) == ("done", 6) and "repeated" not in done.seconds
    # What a program has loaded before it trains is start-up too.
    assert left.seconds["startup"] > 0.5
    names = "loss", "gradient_norm", "distance"
    assert numbers(tmp_path, *names) == numbers(whole[0], *names)


@pytest.mark.slow
def test_who_has_to_leave_does_not_evaluate_first(whole, tmp_path):
    """An evaluation, or the compilation of one, can take longer than the machine is left to us."""
    assert start(tmp_path, faults=dict(sigterm=3)).returncode == 75
    assert latest_step(tmp_path) == 4
    assert "distance" not in read_metrics(tmp_path)[-2]
    assert toy.digest(toy.train(tmp_path)) == whole[1]
    ours, theirs = (numbers(path, "loss", "distance") for path in (tmp_path, whole[0]))
    assert ours[0] == theirs[0]
    assert [4, *ours[1][0]] == theirs[1][0] and ours[1][1] == theirs[1][1][1:]


def test_sigterm_in_an_evaluation_waits_for_its_end(tmp_path):
    def evaluate(state):
        if int(state.step) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return toy.evaluate(state)

    with pytest.raises(Preempted, match="saved at step 5: run the same command again"):
        toy.train(tmp_path, evaluate=evaluate)
    assert column(read_metrics(tmp_path), "distance")[0].tolist() == [4]
    assert latest_step(tmp_path) == 5


def test_a_second_sigterm_ends_at_once(tmp_path):
    killed = start(tmp_path, in_evaluation=2)
    assert killed.returncode == -signal.SIGTERM and killed.stdout == ""
    assert latest_step(tmp_path) != 4
    (attempt,) = read_attempts(tmp_path)
    assert attempt.end is None and attempt.exit_code is None


def test_a_bad_state_is_not_saved_for_a_notice(tmp_path):
    with pytest.raises(Diverged, match="the loss of step 5 is nan"):
        toy.train(tmp_path, sigterm=4, nan=4)
    assert latest_step(tmp_path) == 3


def test_the_old_handler_comes_back():
    def old(number, frame):
        raise AssertionError("called")

    before = signal.signal(signal.SIGTERM, old)
    try:
        with pytest.raises(Preempted, match="as this run finished"), Preemption() as watch:
            assert not watch.reached(1)
            os.kill(os.getpid(), signal.SIGTERM)
            assert watch.reached(2)
        assert signal.getsignal(signal.SIGTERM) is old
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_fails_is_told_rather_than_the_notice():
    with pytest.raises(KeyError), Preemption():
        os.kill(os.getpid(), signal.SIGTERM)
        raise KeyError


def test_exit_codes(capsys):
    def ends_with(error):
        def command():
            raise error

        return exit_code(command, "again"), capsys.readouterr().err

    assert ends_with(Preempted("gone")) == (75, "preempted: gone\n")
    assert ends_with(Failed("broken")) == (1, "error: broken\n")


def test_steps_that_jump_are_not_jumped_over(monkeypatch):
    """Several processes: JAX names the step after the last it was asked about, and means just it.

    What is simulated is JAX's rule, see `multihost_utils.reached_preemption_sync_point`.
    """
    asked, sync = [0], []
    monkeypatch.setattr(preemption, "_asked", 0)
    monkeypatch.setattr(preemption.jax, "process_count", lambda: 2)

    def reached_sync_point(step):
        asked.append(step)
        return step in sync

    monkeypatch.setattr(
        preemption.multihost_utils, "reached_preemption_sync_point", reached_sync_point
    )

    def notice():
        sync.append(asked[-1] + 1)

    with Preemption() as watch:
        notice()  # while the run that goes on from step 300 is restored
        assert watch.reached(301)
    sync.clear()
    with Preemption() as watch:
        assert not watch.reached(302)
        notice()
        assert watch.reached(303)
    sync.clear()
    notice()  # between two runs of one command
    with Preemption() as watch:
        assert watch.reached(1)
    sync.clear()
    with Preemption() as watch:
        assert not any(watch.reached(step) for step in range(2, 5))
    assert asked == [0, 1, 301, 302, 303, 304, 1, 2, 3, 4]
