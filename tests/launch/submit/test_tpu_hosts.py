"""What is run on the hosts of TPU VMs, run by bash as ssh would."""

import os
import shutil
import signal
import subprocess
import time

import pytest

from launch.submit.plan import Command
from launch.submit.tpu_hosts import FOLDER, Hosts

ARGV = ("python", "-m", "x", "--config=a b.py:k='1',c=$HOME", "--workdir=gs://b/run")
# Stands for the task: says its words, waits for SIGTERM if it is told to, ends with a code.
PYTHON = """#!/bin/bash
printf '%s\\n' "$@" "$SECRET" "$IMAGEN_FT_COMMIT" >>~/said
[ ! -e ~/wait ] || { trap 'exit 75' TERM; touch ~/ready; while :; do sleep 0.02; done; }
exit "$(cat ~/code)"
"""
UV = """#!/bin/bash
echo "uv $*" >>~/uv
[ "$1" != venv ] || { mkdir -p venv/bin && cp ~/python venv/bin/python; }
"""
HOSTS = Hosts("run-1", ("--project=p",), ("run-1",), (1,))


class Host:
    """A home folder, in which a shell runs what gcloud is given for ssh."""

    def __init__(self, home):
        self.home = home
        (home / ".local" / "bin").mkdir(parents=True)
        for path, text in ((home / "python", PYTHON), (home / ".local" / "bin" / "uv", UV)):
            path.write_text(text)
            path.chmod(0o755)
        (home / "code").write_text("0")
        self.environment = {"HOME": str(home), "PATH": "/usr/bin:/bin"}

    def run(self, *commands, code=0):
        """Runs the commands; what they have printed."""
        printed = ""
        for command in commands:
            if "scp" in command.argv:
                source, target = command.argv[5:7]
                shutil.copy(source, self.home / target.partition(":")[2])
                continue
            # gcloud splits at spaces, and ssh puts the parts together again.
            line = " ".join(command.argv[-1].removeprefix("--command=").split(" "))
            done = subprocess.run(
                ["bash", "-c", line], env=self.environment, cwd=self.home, timeout=60,
                input=command.stdin(), capture_output=True, text=True,
            )  # fmt: skip
            assert done.returncode == code, done.stderr
            printed += done.stdout + done.stderr
        return printed

    def look(self):
        return self.run(*HOSTS.look()).strip()

    def wait(self, name):
        """Waits for a file."""
        end = time.monotonic() + 30
        while not (self.home / name).exists():
            assert time.monotonic() < end, f"{name} does not come"
            time.sleep(0.01)


@pytest.fixture
def host(tmp_path):
    """A host on which the job is installed."""
    (tmp_path / "home").mkdir()
    host = Host(tmp_path / "home")
    (tmp_path / "setup.py").write_text("")
    archive = tmp_path / "code.tar.gz"
    subprocess.run(["tar", "-czf", archive, "-C", tmp_path, "setup.py"], check=True)
    host.run(*HOSTS.prepare(str(archive), "tpu,gcs"))
    yield host
    for pid in host.home.glob(f"{FOLDER}/*/pid"):
        with_group = int(pid.read_text().split()[0])
        try:
            os.killpg(with_group, signal.SIGKILL)
        except ProcessLookupError:
            pass


def start(attempt=0, job=HOSTS):
    return job.start(attempt, "abc", ARGV, ("SECRET",))


def test_task_runs_and_its_end_is_kept(host, monkeypatch):
    monkeypatch.setenv("SECRET", "very 'secret=$HOME")
    assert (
        "pip install --quiet --python venv/bin/python ./code[tpu,gcs]"
        in (host.home / "uv").read_text()
    )
    assert host.look() == "job: none"
    (host.home / "code").write_text("3")
    host.run(*start())
    host.wait(f"{FOLDER}/run-1/exit")
    assert host.look() == "job: ended 3 0"
    said = (host.home / "said").read_text().splitlines()
    assert said == [*ARGV[1:], "very 'secret=$HOME", "abc"]
    (host.home / "code").write_text("0")
    host.run(*start(1))
    host.wait(f"{FOLDER}/run-1/exit")
    assert host.look() == "job: ended 0 1"
    assert host.run(HOSTS.log(to_its_end=True)).count("starts: python -m x") == 2
    files = [path for path in (host.home / FOLDER).rglob("*") if path.is_file()]
    assert not any(b"very 'secret" in path.read_bytes() for path in files)


def test_stopped(host, monkeypatch):
    monkeypatch.setenv("SECRET", "")
    (host.home / "wait").touch()
    host.run(*start())
    host.wait("ready")
    assert host.look() == "job: running"
    assert "run-1 runs on this host already" in host.run(*start(1), code=2)
    other = Hosts("run-2", ("--project=p",), ("run-1",), (1,))
    assert "run-1 runs on this host: stop it" in host.run(other.prepare("", "")[0], code=2)
    host.run(*HOSTS.stop())
    host.wait(f"{FOLDER}/run-1/exit")
    assert host.look() == "job: stopped 75 0"


def test_killed(host, monkeypatch):
    monkeypatch.setenv("SECRET", "")
    (host.home / "wait").touch()
    host.run(*start())
    host.wait("ready")
    pid = int((host.home / FOLDER / "run-1" / "pid").read_text().split()[0])
    os.killpg(pid, signal.SIGKILL)
    while host.look() == "job: running":
        time.sleep(0.01)
    assert host.look() == "job: ended 137 0"
    (host.home / "wait").unlink()
    host.run(*start(1))
    host.wait(f"{FOLDER}/run-1/exit")
    assert host.look() == "job: ended 0 1"


def test_one_command_a_host():
    hosts = Hosts("j", (), ("j-0", "j-1"), (2, 1))
    commands = start(job=hosts)
    assert all(isinstance(command, Command) for command in commands)
    assert [command.argv[5:7] for command in commands] == [
        ("j-0", "--worker=0"),
        ("j-0", "--worker=1"),
        ("j-1", "--worker=0"),
    ]
