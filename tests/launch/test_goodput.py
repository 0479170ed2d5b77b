"""What is read of the attempts of a run: their time, and when a run is given up."""

import dataclasses
import json
import subprocess
import sys

import pytest

from launch.goodput import GOODPUT, KINDS, Attempt, productive, read_attempts, stuck_at, summary
from tests.support import ROOT

KILLED = Attempt(1, "host:7:0.50", 100.0, {"startup": 30.0, "steps": 60.0}, 1, 40, "steps")
DONE = dataclasses.replace(
    KILLED,
    number=2,
    process="host:8:0.50",
    began=200.0,
    seconds={"startup": 10.0, "repeated": 8.0, "steps": 92.0},
    end="done",
    exit_code=0,
)


def write(folder, *attempts, rest=""):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / GOODPUT).write_text("".join(one.to_line() for one in attempts) + rest)


def test_the_last_whole_line_of_an_attempt_counts(tmp_path):
    assert read_attempts(tmp_path / "nothing") == []
    begun = dataclasses.replace(KILLED, last_step=0, doing="startup", seconds={"startup": 30.0})
    write(tmp_path, begun, KILLED, DONE, rest=DONE.to_line()[:-5])
    assert read_attempts(tmp_path) == [KILLED, DONE]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "2",
        "[" * 100_000,
        KILLED.to_line()[:-9],
        *(
            json.dumps(json.loads(KILLED.to_line()) | wrong)
            for wrong in (
                {"last_step": "40"},
                {"number": True},
                {"seconds": {"steps": None}},
                {"seconds": {"steps": -1.0}},
                {"seconds": {"idling": 1.0}},
                {"began": [1]},
                {"other": 1},
            )
        ),
        json.dumps({"number": 3}),
    ],
)
def test_damaged_lines_are_passed_over(tmp_path, line):
    write(tmp_path, KILLED, rest=f"{line}\n{DONE.to_line()}")
    assert read_attempts(tmp_path) == [KILLED, DONE]


def test_a_process_that_trains_several_seeds_is_one_attempt(tmp_path):
    first, second = (
        dataclasses.replace(KILLED, end=end, exit_code=code, began=began, last_step=9)
        for end, code, began in (("done", 0, 100.0), (None, None, 190.0))
    )
    write(tmp_path / "seed_0", first)
    write(tmp_path / "seed_1", second, dataclasses.replace(DONE, number=2))
    (tmp_path / "config.json").touch()
    killed, done = read_attempts(tmp_path)
    assert (killed.number, killed.process, killed.began) == (1, KILLED.process, 100.0)
    assert killed.end is None and killed.exit_code is None
    assert killed.seconds["steps"] == 120.0 and killed.seconds["startup"] == 60.0
    assert done == DONE


def test_summary():
    assert summary([]) == "no attempt has trained yet"
    assert productive([]) == 0.0
    line = "productive 76% of 3.3 min in 2 attempts: start-up 20%, repeated steps 4%"
    assert summary([KILLED, DONE]) == line and productive([KILLED, DONE]) == 0.76
    all_kinds = dataclasses.replace(KILLED, seconds=dict.fromkeys(KINDS, 1000.0))
    assert all(f"{KINDS[kind]} 11%" in summary([all_kinds]) for kind in KINDS if kind != "steps")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(5.26, "5.3 s"), (102.0, "1.7 min"), (5000, "83 min"), (7560, "2.1 h"), (1e6, "12 days")],
)
def test_durations(seconds, said):
    attempt = dataclasses.replace(KILLED, seconds={"steps": seconds})
    assert summary([attempt]) == f"productive 100% of {said} in 1 attempt"


FAILED = dataclasses.replace(KILLED, end="failed", exit_code=1)


def ended(end, code, **fields):
    return dataclasses.replace(KILLED, end=end, exit_code=code, **fields)


@pytest.mark.parametrize(
    ("attempts", "newest", "step"),
    [
        ([FAILED, KILLED, ended("diverged", 1)], 30, 40),
        ([DONE, FAILED, FAILED, FAILED, FAILED], 0, 40),
        # Which step it was is known of an error, even of the first step.
        ([dataclasses.replace(FAILED, first_step=40)] * 3, 39, 40),
        # The first step was made: it is evaluated, or saved.
        ([dataclasses.replace(KILLED, first_step=40, doing="evaluation")] * 3, 39, 40),
        ([FAILED, FAILED], 0, None),
        # There is a checkpoint of that step: the next one goes on behind it.
        ([FAILED] * 3, 40, None),
        ([FAILED, FAILED, dataclasses.replace(FAILED, last_step=41)], 0, None),
        # Nobody knows what killed it before a step was made.
        ([dataclasses.replace(KILLED, first_step=40, doing="compile")] * 3, 0, None),
        ([dataclasses.replace(KILLED, last_step=0, doing="startup")] * 3, 0, None),
        ([FAILED, FAILED, ended("preempted", 75)], 0, None),
        # A store that does not answer, wrong input, the user.
        ([FAILED, ended("failed", 75), FAILED], 0, None),
        ([FAILED, ended("failed", 2), FAILED], 0, None),
        ([ended("interrupted", 130), FAILED, FAILED], 0, None),
        ([FAILED, FAILED, DONE], 0, None),
    ],
)
def test_a_run_is_given_up_after_three_bad_ends_at_one_step(attempts, newest, step):
    assert stuck_at(attempts, newest) == step


def test_reading_needs_no_jax():
    code = "import sys, launch.goodput; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
