import pytest

from launch import goodput
from launch.submit import __main__ as submit
from launch.submit import task
from launch.submit.checkout import Checkout
from tests.launch.submit.stand_ins import StandIns
from tests.support import ROOT

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """Stand-ins for other makers' programs, and nothing else on PATH but the system's."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}")
    return StandIns(tmp_path / "bin")


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Runs `launch.submit` in a folder of its own, from a clean checkout; returns its exit code.

    What the task says of its own arguments is left out: it takes a process for every call.
    """
    monkeypatch.chdir(tmp_path)
    checkout = Checkout(ROOT, COMMIT, is_dirty=False)
    monkeypatch.setattr(submit, "find_checkout", lambda is_needed: checkout)
    flags = "coordinator config dry_run num_processes num_workers preflight worker workdir".split()
    monkeypatch.setattr(task.Task, "flags", frozenset(flags))
    monkeypatch.setattr(task.Task, "check", lambda self, preflight="": None)

    # No test of a job asks a real bucket for its run.
    read = goodput.read_attempts
    monkeypatch.setattr(goodput, "read_attempts", lambda path: [] if "gs:" in path else read(path))

    def run(*argv):
        return submit.main(["launch.submit", *argv])

    return run
