"""Processes of a job that were started otherwise, or are lost: the rest end with one line."""

import json
import signal
import time

import pytest

from tests.multihost.processes import run_processes, start_processes

MODULE = "tests.multihost.peer_processes"


def ended(started):
    """Exit codes, and the lines of stderr that are ours."""
    codes = [process.wait(timeout=40) for process, _ in started]
    lines = [log.read_text().splitlines() for _, log in started]
    return codes, [
        [line for line in own if line.startswith(("error: ", "lost: "))] for own in lines
    ]


def wait_until_they_have_met(started):
    while not all("met" in log.with_suffix(".out").read_text() for _, log in started):
        assert all(process.poll() is None for process, _ in started), started[0][1].read_text()
        time.sleep(0.05)


def test_processes_with_different_configs():
    with start_processes(MODULE, '{"fields": {"model.width": 8}}', devices=1) as started:
        codes, lines = ended(started)
    line = (
        "error: process 1 was started with config.model.width = 8, process 0 with 4; start all "
        "processes of a job alike"
    )
    assert codes == [2, 2] and lines == [[line], [line]]


@pytest.mark.parametrize("lost", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_process_that_is_killed(lost):
    with start_processes(MODULE, "{}", devices=1) as started:
        wait_until_they_have_met(started)
        started[lost][0].kill()
        codes, lines = ended(started)
        log = started[1 - lost][1].read_text()
    assert codes[lost] == -9 and codes[1 - lost] == 75, log
    (line,) = lines[1 - lost]
    assert line.startswith(f"lost: process {lost} of this job is gone; see its own output. ")
    assert "Traceback" not in log


@pytest.mark.slow
def test_a_process_that_is_stopped():
    """Its sockets stay open, and calls to it hang."""
    with start_processes(MODULE, "{}", devices=1) as started:
        wait_until_they_have_met(started)
        started[0][0].send_signal(signal.SIGSTOP)
        code = started[1][0].wait(timeout=40)
        started[0][0].kill()
        assert code == 75, started[1][1].read_text()


@pytest.mark.slow
@pytest.mark.parametrize("fails", [0, 1])
def test_a_process_that_fails_alone(fails):
    """It keeps its traceback and its code; the other one does not wait for it for ever."""
    options = {"steps": 100, "fails": fails}
    with start_processes(MODULE, json.dumps(options), devices=1) as started:
        codes, lines = ended(started)
        log = started[fails][1].read_text()
    assert codes[fails] == 1 and "LookupError: of this process alone" in log
    assert codes[1 - fails] == 75 and len(lines[1 - fails]) == 1


@pytest.mark.slow
def test_processes_that_end_together():
    assert run_processes(MODULE, '{"steps": 5}', devices=1) == ["done", "done"]
