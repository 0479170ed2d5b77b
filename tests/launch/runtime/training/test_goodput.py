"""Every moment of an attempt is counted once, and a run that comes to nothing is given up."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from launch.errors import Failed, InputError, Preempted, Unreachable
from launch.goodput import GOODPUT, Attempt, read_attempts
from launch.runtime.checkpoints.inference import latest_step
from launch.runtime.training import goodput
from launch.runtime.training.goodput import Ledger
from tests.support import toy
from tests.support.toy import PowerCut, changed, train


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(goodput, "_is_command", lambda: True)
    monkeypatch.setattr(goodput, "_is_age_counted", False)
    monkeypatch.setattr(goodput, "process_age", lambda: 0.0)
    return Clock()


def step(ledger, clock, number, seconds):
    ledger.begin_step(number)
    clock.now += seconds
    ledger.end_step()


def seconds(ledger):
    return {kind: x for kind, x in ledger.attempts[-1].seconds.items() if x}


def test_all_time_is_counted_once(clock, monkeypatch):
    ledger, lines = Ledger(clock=clock), []
    with ledger.doing("restore"):
        clock.now += 3
    clock.now += 2
    monkeypatch.setattr(goodput, "process_age", lambda: 25.0)
    ledger.start(301, lines.append)
    began = ledger.attempts[-1].began
    assert seconds(ledger) == {"startup": 22.0, "restore": 3.0}
    assert time.time() - 21 < began < time.time() - 19
    clock.now += 1
    ledger.waited(1.0)  # for the first batch: still start-up
    step(ledger, clock, 301, 60.0)
    step(ledger, clock, 302, 2.0)
    with ledger.doing("evaluation"):
        clock.now += 10
    step(ledger, clock, 303, 2.0)
    with ledger.doing("pictures"):
        clock.now += 4
    with ledger.doing("checkpoint"):
        clock.now += 5
    ledger.end(None)
    assert seconds(ledger) == {
        "startup": 23.0,
        "restore": 3.0,
        "compile": 60.0,
        "steps": 4.0,
        "evaluation": 10.0,
        "pictures": 4.0,
        "checkpoint": 5.0,
    }
    # The time before belongs to the first training of a process, and to that of a command only.
    second = Ledger(clock=clock)
    second.start(1, lines.append)
    assert seconds(second) == {}
    monkeypatch.setattr(goodput, "_is_age_counted", False)
    monkeypatch.setattr(goodput, "_is_command", lambda: False)
    third = Ledger(clock=clock)
    third.start(1, lines.append)
    assert seconds(third) == {}


@pytest.mark.parametrize(
    ("wait", "idle"),
    # Two steps of 2 seconds are under way, the second of them for a moment.
    [(0.5, 0.0), (3.9, 0.0), (5.0, 1.0), (64.0, 60.0)],
)
def test_waiting_for_data_counts_while_no_step_is_under_way(clock, wait, idle):
    ledger = Ledger(clock=clock)
    ledger.start(1, lambda line: None)
    for number, took in enumerate((60.0, 7.0, 2.0), start=1):  # the second one compiles again
        step(ledger, clock, number, took)
    before = sum(seconds(ledger).values())
    step(ledger, clock, 4, 0.0)
    step(ledger, clock, 5, 0.0)
    clock.now += wait
    ledger.waited(wait)
    assert ledger.attempts[-1].seconds["data"] == idle
    assert sum(seconds(ledger).values()) == pytest.approx(before + wait)


def attempt(last_step, end="failed", code=1):
    return Attempt(1, "host:1:0.00", 0.0, {"steps": 1.0}, 1, last_step, "steps", end, code)


def test_what_an_earlier_attempt_had_done_is_made_again(clock):
    ledger = Ledger([attempt(12), attempt(9)], clock=clock)
    ledger.start(11, lambda line: None)
    for number in range(11, 15):
        step(ledger, clock, number, 2.0)
    assert seconds(ledger)["compile"] == 2.0
    assert seconds(ledger)["repeated"] == 2.0 and seconds(ledger)["steps"] == 4.0


def lines_of_steps(clock, earlier, count, each):
    ledger, lines = Ledger(earlier, clock=clock), []
    ledger.start(1, lines.append)
    for number in range(1, count + 1):
        step(ledger, clock, number, each)
    return lines


def test_lines_become_rarer(clock):
    # One of each second; later of each hundredth of the time that the attempt has taken.
    assert len(lines_of_steps(clock, [], 100, 2.0)) == 100
    assert 9 <= len(lines_of_steps(clock, [], 5000, 2e-3)) <= 11
    assert 400 < len(lines_of_steps(clock, [], 5000, 1.0)) < 600


def test_where_an_attempt_has_ended_badly_every_step_is_written_down(clock):
    assert len(lines_of_steps(clock, [attempt(5)], 20, 1e-3)) == 1 + 16
    assert len(lines_of_steps(clock, [attempt(5)], 3000, 1e-6)) == 1 + 1000
    assert len(lines_of_steps(clock, [attempt(5, "preempted", 75)], 20, 1e-3)) == 1


@pytest.mark.parametrize(
    ("error", "end", "code", "text"),
    [
        (None, "done", 0, ""),
        (Preempted("saved"), "preempted", 75, "Preempted: saved"),
        (KeyboardInterrupt(), "interrupted", 130, "KeyboardInterrupt"),
        (InputError("a\nb"), "failed", 2, "InputError: a b"),
        (OSError(28, "No space left on device", "x"), "failed", 2, "OSError: [Errno 28] No"),
        (Unreachable("the store"), "failed", 75, "Unreachable: the store"),
        (LookupError("x" * 999), "failed", 1, "LookupError: xxx"),
    ],
)
def test_how_an_attempt_ends(clock, tmp_path, error, end, code, text):
    ledger, lines = Ledger([attempt(5)], clock=clock), []
    ledger.start(1, lines.append)
    ledger.end(error)
    (tmp_path / GOODPUT).write_text("".join(lines))
    (one,) = read_attempts(tmp_path)
    assert (one.number, one.end, one.exit_code) == (2, end, code)
    assert one.error.startswith(text) and len(one.error) <= 200


def test_the_age_of_a_process(monkeypatch):
    by_proc, by_ps = goodput.process_age(), goodput._age_by_ps()
    assert by_proc > 0 and abs(by_proc - by_ps) < 2

    def says(text):
        done = subprocess.CompletedProcess([], 0, stdout=text)
        monkeypatch.setattr(subprocess, "run", lambda *args, **options: done)
        return goodput._age_by_ps()

    assert says(" 00:07\n") == 7 and says("01:02:03\n") == 3723 and says("2-00:00:01") == 172801
    assert says("") == 0
    says("  01:00")

    def missing(path):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert goodput.process_age() == 60


def test_attempts_of_a_run(tmp_path, capsys):
    with pytest.raises(PowerCut):
        train(tmp_path, cut=5)
    train(tmp_path)
    cut, done = read_attempts(tmp_path)
    assert (cut.first_step, cut.last_step, cut.end, cut.exit_code) == (1, 5, "failed", 1)
    assert (done.first_step, done.last_step, done.end, done.exit_code) == (4, 8, "done", 0)
    assert cut.error == "PowerCut" and (cut.number, done.number) == (1, 2)
    # Milliseconds are written down, and some kinds of work take less; what took none is left out.
    kinds = {"startup", "restore", "compile", "steps", "data", "evaluation", "checkpoint"}
    assert cut.seconds.keys() == kinds and done.seconds.keys() == kinds | {"repeated"}
    said = capsys.readouterr().err.splitlines()[-2]
    assert said.startswith("toy: productive ") and " in 2 attempts: start-up " in said
    before = (tmp_path / GOODPUT).read_bytes()
    train(tmp_path)  # it is complete
    assert (tmp_path / GOODPUT).read_bytes() == before


def fails(workdir, **options):
    with pytest.raises(PowerCut):
        train(workdir, **options)


def killed(workdir, monkeypatch, **options):
    """As kill -9 leaves it: without an end, and with half a line."""
    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "end", lambda ledger, error: None)
        fails(workdir, **options)
    with (workdir / GOODPUT).open("a") as file:
        file.write('{"number": 9, "proc')


def refused(workdir, reason):
    before = (workdir / GOODPUT).read_bytes()
    with pytest.raises(Failed, match=reason) as raised:
        train(workdir)
    assert raised.value.code == 1 and "\n" not in str(raised.value)
    assert (workdir / GOODPUT).read_bytes() == before


def test_a_run_that_fails_three_times_at_one_step(tmp_path):
    for _ in range(3):
        fails(tmp_path, cut=5)
    refused(
        tmp_path,
        f"{tmp_path}: three attempts in a row ended at step 5, the last by PowerCut; "
        f"fix the cause, remove {tmp_path / GOODPUT}, and run the same command again",
    )
    (tmp_path / GOODPUT).unlink()
    assert int(train(tmp_path).step) == 8


def test_a_run_that_is_killed_at_one_step(tmp_path, monkeypatch):
    # Of the first one it is known what was written last; it takes less than a second.
    for _ in range(4):
        killed(tmp_path, monkeypatch, cut=5)
    steps = [one.last_step for one in read_attempts(tmp_path)]
    assert steps[1:] == [5, 5, 5]
    refused(tmp_path, "ended at step 5, the last was killed \\(repeated")
    # A checkpoint of that step, whoever made it.
    monkeypatch.setattr(goodput, "latest_step", lambda workdir: 5)
    fails(tmp_path, cut=6)


def test_a_run_that_is_killed_in_an_evaluation(tmp_path, monkeypatch):
    def evaluate(state):
        raise PowerCut

    for _ in range(4):
        killed(tmp_path, monkeypatch, evaluate=evaluate)
    refused(tmp_path, "ended at step 4, the last was killed \\(evaluation")


def test_a_run_that_comes_further_each_time_goes_on(tmp_path):
    for cut in (4, 4, 5, 5, 4, 7, 7):
        fails(tmp_path, cut=cut)
    assert latest_step(tmp_path) == 6 and int(train(tmp_path).step) == 8


def test_a_full_disk_for_the_last_line_hides_no_error(tmp_path, monkeypatch):
    def full(ledger, error):
        raise OSError(28, os.strerror(28), GOODPUT)

    monkeypatch.setattr(Ledger, "end", full)
    fails(tmp_path, cut=2)
    with pytest.raises(OSError, match="No space"):
        train(tmp_path)


def test_of_several_processes_all_give_up(tmp_path, monkeypatch):
    """The first one decides; who only heard of it ends with the same line."""
    monkeypatch.setattr(
        goodput, "decide_on_first_process", lambda decision: "the word of process 0"
    )
    with pytest.raises(Failed, match="the word of process 0"):
        toy.train(tmp_path, changed(total_steps=1))
    assert not list(tmp_path.iterdir())
