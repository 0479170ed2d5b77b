"""Processes of this machine: how they are started, and how they end."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from launch import goodput
from launch.errors import InputError
from launch.submit import local, processes, record
from tests.launch.submit.stand_ins import check_golden
from tests.support import ROOT

TASK = (
    "--",
    "python",
    "-m",
    "imagen_ft.finetune",
    "--config=a.py:k=1,b=two words",
    "--workdir=run",
)
# Ends when it is told, as a run that has saved.
SAVES = "trap 'exit 75' TERM; echo ready; while :; do sleep 0.01; done"
DEAF = "trap '' TERM; echo ready; while :; do sleep 0.01; done"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("one", ()),
        ("four", ("--processes=4", "--devices=cpu")),
        ("workers", ("--workers=2",)),
    ],
)
def test_commands(job, capsys, tmp_path, name, options):
    assert job("local", "--dry_run", *options, *TASK) == 0
    check_golden(f"local_{name}.txt", capsys.readouterr().out)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def with_terminal():
    """As under a shell, whatever nohup has had the tests ignore."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_nohup_is_heeded(with_terminal):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with processes.listening():
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@pytest.fixture
def run(tmp_path, with_terminal):
    """Runs lines of a shell side by side; `tell` is sent to this process when all are ready."""

    def run(*lines, tell=()):
        logs = tmp_path / "logs"

        def ready():
            texts = [file.read_text() for file in logs.glob("*.log")]
            return len(texts) == len(lines) and all("ready" in text for text in texts)

        def signals():
            while not ready():
                time.sleep(0.01)
            for number in tell:
                os.kill(os.getpid(), number)
                time.sleep(0.1)

        thread = threading.Thread(target=signals)
        if tell:
            thread.start()
        with processes.listening() as asked:
            code = processes.run_once([["sh", "-c", line] for line in lines], logs, asked)
        if tell:
            thread.join()
        return code

    return run


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        (("exit 0", "exit 0"), 0),
        ((SAVES, "exit 1"), 1),
        ((SAVES, SAVES, "exit 2"), 2),
        ((SAVES, "kill -9 $$"), 137),
        (("exit 75", "exit 0"), 75),
        (("exit 75", SAVES), 75),
    ],
)
def test_the_first_failure_ends_all(run, lines, code):
    assert run(*lines) == code


@pytest.mark.parametrize("asked", [[], [signal.SIGTERM]])
def test_a_failure_that_a_restart_would_not_mend_is_told(asked):
    """Of two that have failed at once, one because it had lost the other."""
    children = [mock_process(75), mock_process(2)]
    assert processes.outcome(children, asked) == 2


def ends(pid):
    """Whether a process has ended within five seconds."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().split()[2] in "ZX":
            return True
        time.sleep(0.01)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc to look at")
def test_nothing_is_left_of_a_process(run, tmp_path):
    """Workers of an input pipeline outlive one that was killed, and hold its device."""
    assert run(f"sleep 100 & echo $! > {tmp_path}/left; kill -9 $$") == 137
    assert ends(int((tmp_path / "left").read_text()))


@pytest.mark.parametrize(
    ("visible", "used"), [("", ["0", "1"]), ("4,5,6", ["4", "5"]), ("GPU-a, GPU-b", None)]
)
def test_gpus_that_are_left_out_are_not_taken(job, monkeypatch, capsys, visible, used):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    exists = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: path == "/dev/kfd" or exists(path))
    count = 2 if used else 3
    options = ("local", "--dry_run", "--devices=gpu", f"--processes={count}", *TASK)
    if not used:
        with pytest.raises(InputError, match="CUDA_VISIBLE_DEVICES=GPU-a,GPU-b must name 3 GPUs"):
            job(*options)
        return
    assert job(*options) == 0
    assert re.findall("CUDA_VISIBLE_DEVICES=(.*?) ", capsys.readouterr().out) == used


def mock_process(code):
    process = processes.Process.__new__(processes.Process)
    process.code = code
    return process


@pytest.mark.parametrize(
    ("tell", "lines", "code"),
    [
        ([signal.SIGTERM], (SAVES, SAVES), 75),
        ([signal.SIGHUP], (SAVES, SAVES), 75),  # The terminal was closed.
        ([signal.SIGINT], (SAVES, SAVES), 130),
        ([signal.SIGINT, signal.SIGINT], (DEAF, DEAF), 130),
    ],
)
def test_signals_reach_all(run, tell, lines, code):
    assert run(*lines, tell=tell) == code


def test_who_does_not_leave_is_killed(run, monkeypatch):
    monkeypatch.setattr(processes, "GRACE", 0.1)
    assert run(DEAF, DEAF, tell=[signal.SIGTERM]) == 137


def test_logs(run, tmp_path, capfdbinary):
    assert run("echo of the first; echo of stderr >&2", "echo of the second") == 0
    logs = [(tmp_path / "logs" / f"process-{rank}.log").read_text() for rank in (0, 1)]
    assert logs == ["of the first\nof stderr\n", "of the second\n"]
    assert capfdbinary.readouterr().out == logs[0].encode()


@pytest.fixture
def jobs_of(job, tmp_path, monkeypatch):
    """Runs a job of one process that is a line of a shell; returns exit code and record."""

    def run(line, *options):
        command = ["sh", "-c", line]
        monkeypatch.setattr(local.Local, "commands", lambda self, request: [command])
        code = job("local", *options, *TASK)
        return code, record.read(tmp_path / "jobs", "run")

    return run


def test_restarts_are_counted(jobs_of, capsys, job, tmp_path):
    line = "echo >> count; [ $(wc -l < count) -gt 2 ] || exit 75"
    code, kept = jobs_of(line, "--restarts=5")
    assert (code, kept.state, kept.exit_codes) == (0, "done", [75, 75, 0])
    attempt = goodput.Attempt(1, "a", 0.0, {"steps": 90.0, "compile": 10.0}, 1, 20, "steps")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / goodput.GOODPUT).write_text(attempt.to_line())
    assert job("status", "run") == 0
    said = capsys.readouterr().out
    assert "attempts: 3; the last exit code is 0: done\n" in said
    assert "training: productive 90% of 1.7 min in 1 attempt: compiling 10%\n" in said


@pytest.mark.parametrize(
    ("line", "codes", "state"),
    [
        ("exit 75", [75, 75, 75], "preempted"),
        ("exit 2", [2], "failed"),
        ("exit 1", [1], "failed"),
        ("kill -9 $$", [137, 137, 137], "failed"),
    ],
)
def test_what_is_started_again(jobs_of, line, codes, state):
    code, kept = jobs_of(line, "--restarts=2")
    assert (code, kept.exit_codes, kept.state) == (codes[-1], codes, state)


def test_who_is_told_to_leave_is_not_started_again(jobs_of):
    code, kept = jobs_of(SAVES.replace("echo ready", "kill $PPID"), "--restarts=3")
    assert (code, kept.exit_codes, kept.state) == (75, [75], "stopped")


def test_a_name_is_taken_until_its_job_has_ended(jobs_of, tmp_path):
    kept = jobs_of("exit 1")[1]
    kept.with_(tmp_path / "jobs", state="running")
    with pytest.raises(InputError, match=r"a job 'run' is running \(local\)"):
        jobs_of("exit 0")
    ended = subprocess.Popen(["true"])
    ended.wait()
    kept.with_(tmp_path / "jobs", state="running", terminal=kept.terminal | {"pid": ended.pid})
    assert jobs_of("exit 0")[0] == 0


def test_a_process_of_another_time_is_not_the_job(jobs_of, job, tmp_path):
    kept = jobs_of("exit 1")[1]
    terminal = kept.terminal | {"since": "1"}
    kept.with_(tmp_path / "jobs", state="running", terminal=terminal)
    with pytest.raises(InputError, match=r"run has ended \(failed\)"):
        job("stop", "run")


def test_a_job_of_another_machine_is_left_alone(jobs_of, job, tmp_path, capsys):
    """Its records may be on a disk that this one has mounted too."""
    kept = jobs_of("exit 1")[1]
    terminal = kept.terminal | {"host": "another"}
    kept.with_(tmp_path / "jobs", state="running", terminal=terminal)
    assert job("status", "run") == 0
    assert "state: running\n" in capsys.readouterr().out
    with pytest.raises(InputError, match="run runs on another"):
        job("stop", "run")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of their parent")
def test_nothing_outlives_a_killed_launcher(tmp_path):
    text = (
        "from pathlib import Path; from launch.submit import processes\n"
        f"processes.run_once([['sh', '-c', 'echo $$ > pid; {DEAF}']], Path('logs'), [])"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    launcher = subprocess.Popen(
        [sys.executable, "-c", text], cwd=tmp_path, env=environment, stdout=subprocess.PIPE
    )
    assert launcher.stdout.readline() == b"ready\n"
    launcher.kill()
    launcher.communicate()  # Its end is seen when nobody holds the pipe.
    pid = int((tmp_path / "pid").read_text())
    assert ends(pid)
