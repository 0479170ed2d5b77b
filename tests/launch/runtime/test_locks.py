"""Locks against other processes, which hold theirs until they end, however that is."""

import contextlib
import errno
import fcntl
import os
import subprocess
import sys

import pytest
from etils import epath

from launch.errors import InputError
from launch.runtime.locks import join, lock, one_at_a_time

HOLD = """
import sys
from etils import epath
from launch.runtime import locks
folder = epath.Path(sys.argv[1])
{}
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def another_process(folder, code):
    command = [sys.executable, "-c", HOLD.format(code), str(folder)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen(command, **pipes) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_one_alone(tmp_path):
    folder = epath.Path(tmp_path) / "new"
    with another_process(folder, "locks.lock(folder)"):
        for _ in range(2):
            with pytest.raises(InputError, match="new is in use by another process"):
                lock(folder)
    lock(folder)  # The other one was killed.
    lock(folder)


def test_workers_together(tmp_path, monkeypatch):
    folder = epath.Path(tmp_path)
    monkeypatch.setattr("launch.runtime.locks._TRIES", 1)
    with another_process(folder, "locks.join(folder, 0, 3)"):
        with pytest.raises(InputError, match="in use by another process"):
            lock(folder)
        # The refused one has not wiped out how many they are.
        with pytest.raises(InputError, match="--num_workers must be 3"):
            join(folder, 1, 2)
        with pytest.raises(InputError, match="worker 0 is already running"):
            join(folder, 0, 3)
        join(folder, 1, 3)
        with another_process(folder, "locks.join(folder, 2, 3)"):
            pass
    join(folder, 0, 2)  # Alone again: it says how many there are.
    lock(folder)
    late = "locks._TRIES = 1; locks.join(folder, 1, 2)"
    with pytest.raises(AssertionError), another_process(folder, late):
        pass


def test_one_at_a_time(tmp_path):
    folder = epath.Path(tmp_path)
    code = """
print("held", flush=True)
with locks.one_at_a_time(folder):
    (folder / "inside").touch()
"""
    with one_at_a_time(folder), another_process(folder, code) as process:
        process.stdin.close()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        assert not (folder / "inside").exists()
    with another_process(folder, code) as process:
        process.stdin.close()
        assert process.wait(30) == 0 and (folder / "inside").exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_that_knows_no_locks(tmp_path, monkeypatch, capsys, number):
    def refused(file, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refused)
    folder = epath.Path(tmp_path) / "new"
    lock(folder)
    with one_at_a_time(folder):
        join(folder, 0, 2)
    with one_at_a_time(folder):
        join(folder, 1, 2)
    assert capsys.readouterr().err.count("its file system has no locks") == 1
    # Nothing that a killed process would leave keeps the next one out.
    assert {path.stat().st_size for path in tmp_path.rglob(".lock-*")} <= {0}


def test_locks_that_fail_otherwise_are_errors(tmp_path, monkeypatch):
    def refused(file, how):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(OSError, match="Input/output"):
        lock(epath.Path(tmp_path))
