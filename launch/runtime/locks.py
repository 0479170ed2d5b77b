"""Locks of work directories: one process alone, or several workers together."""

import contextlib
import fcntl
import functools
import os
import time
from collections.abc import Iterator

from etils import epath
from filelock import FileLock, Timeout

from launch.cli import say
from launch.errors import InputError
from launch.files import NO_LOCKS, is_local

# Locks that this process holds until it ends, by path: exclusive ones, or shared with workers.
_ALONE: dict[str, FileLock] = {}
_WITH_OTHERS: dict[str, tuple[int, FileLock]] = {}
_TRIES = 50  # of 0.1 s each


def lock(workdir: epath.Path) -> None:
    """Locks other processes out of a work directory until this one ends; `InputError` if in use."""
    path = _enter(workdir)
    if not is_local(workdir) or path in _ALONE:
        return
    _leave(path)
    own = _file_lock(path, ".lock")
    if not _acquired(own):
        raise InputError(f"{workdir} is in use by another process; wait for it to finish")
    _ALONE[path] = own


def join(workdir: epath.Path, worker: int, num_workers: int) -> None:
    """Creates a work directory that several workers share; holds it until this process ends.

    Raises `InputError` if this worker runs already, other workers use another `num_workers`, a
    process has it for itself, or it is a file.
    """
    path = _enter(workdir)
    if not is_local(workdir):
        return
    _leave(path)
    # `lock` holds the same file exclusively. FileLock knows no shared mode, so use flock itself.
    shared = os.open(os.path.join(path, ".lock"), os.O_RDWR | os.O_CREAT, 0o644)
    own = _file_lock(path, f".lock-worker-{worker}")
    try:
        # First the shared lock on the directory, then the exclusive one on this worker's number.
        _share(shared, str(num_workers), path)
        if not _acquired(own):
            raise InputError(f"worker {worker} is already running there; wait for it to finish")
    except InputError as error:
        os.close(shared)
        raise InputError(f"{workdir}: {error}") from None
    _WITH_OTHERS[path] = shared, own


@contextlib.contextmanager
def one_at_a_time(workdir: epath.Path) -> Iterator[None]:
    """Lets processes through the block one at a time; in an object store all at once."""
    with contextlib.ExitStack() as held:
        if is_local(workdir):
            with _or_without(workdir):
                held.enter_context(_file_lock(workdir, ".lock-finish"))
        yield


@contextlib.contextmanager
def tried(workdir: epath.Path) -> Iterator[bool]:
    """Yields whether no other process is in such a block of the folder; True in a store."""
    if not is_local(workdir):
        yield True
        return
    own = _file_lock(workdir, ".lock-tried")
    acquired = _acquired(own)
    try:
        yield acquired
    finally:
        own.release()


def _share(file: int, num_workers: str, path: str) -> None:
    # Shared by all workers that state the same number; the lock file holds it.
    for left in reversed(range(_TRIES)):
        if _flocked(file, fcntl.LOCK_EX, path):
            # Nobody else holds it: this is the first worker, which sets the number.
            os.ftruncate(file, 0)
            os.pwrite(file, num_workers.encode(), 0)
        if _flocked(file, fcntl.LOCK_SH, path):
            break
        if not left:
            raise InputError("another process is running there; wait for it to finish")
        time.sleep(0.1)  # another worker holds it exclusively for a moment as it comes in
    if (found := os.pread(file, 20, 0).decode()) != num_workers:
        raise InputError(
            f"--num_workers must be {found}, as for the workers already running there, got "
            f"{num_workers}; change it, or wait for them to finish"
        )


def _enter(workdir: epath.Path) -> str:
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"--workdir must be a folder, got the file {workdir}; choose another one")
    workdir.mkdir(parents=True, exist_ok=True)
    return os.path.abspath(workdir)


def _leave(path: str) -> None:
    if path in _ALONE:
        _ALONE.pop(path).release()
    if path in _WITH_OTHERS:
        shared, own = _WITH_OTHERS.pop(path)
        os.close(shared)
        own.release()


def _file_lock(path: epath.PathLike, name: str) -> FileLock:
    # The fallback, a file that exists, would outlive a killed process.
    return FileLock(os.path.join(path, name), thread_local=False, fallback_to_soft=False)


def _acquired(one: FileLock) -> bool:
    try:
        with _or_without(os.path.dirname(one.lock_file)):
            one.acquire(blocking=False)
    except Timeout:
        return False
    return True


def _flocked(file: int, how: int, path: str) -> bool:
    try:
        # Non-blocking flock raises BlockingIOError if another process holds it in conflict.
        with _or_without(path):
            fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _or_without(path: epath.PathLike) -> Iterator[None]:
    # Continue without a lock, with one warning, if the file system has none.
    try:
        yield
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        _warn(os.fspath(path))


@functools.cache
def _warn(path: str) -> None:
    say(f"warning: {path}: its file system has no locks; make sure that only one process uses it")
