"""Worker processes that read ahead, and end with their parent."""

import multiprocessing
import os
import shutil
import signal
import threading

from launch.cli import say
from launch.cpus import usable_cpus

ALL = -1
_SHARED_MEMORY = "/dev/shm"  # of limited size; macOS has no such folder
_BATCHES = 4  # that a worker holds there


def count_workers(asked: int, batch_bytes: int, readers: int = 1) -> int:
    """The number of processes of one reader, of `readers` that read at the same time.

    `asked` is `config.loader_workers`, shared by the readers; `ALL` is one for each usable CPU but
    one, as far as shared memory has room for their batches of `batch_bytes`.
    """
    if asked != ALL:
        return -(-asked // readers)
    most = max(1, usable_cpus() - 1)
    count = -(-most // readers)
    if not os.path.isdir(_SHARED_MEMORY):
        return count
    # Plan with half of it: others use it too, and may soon take more.
    room = shutil.disk_usage(_SHARED_MEMORY).free // 2 // (_BATCHES * batch_bytes * readers)
    if room < count:
        say(
            f"config.loader_workers={ALL}: {room or 'threads, not'} of {count} processes, as "
            f"{_SHARED_MEMORY} has no room for more batches; make it larger"
        )
    return min(room, count)


def end_with_parent(index: int, count: int) -> None:
    """Called first in a worker, by Grain with its index and count: leaves signals to the parent."""
    # A scheduler's signal goes to all processes of a job, but the parent decides what it means, and
    # may want a few more batches before it saves.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # A parent that is killed by SIGKILL cannot end its workers, so they watch it.
    threading.Thread(target=_wait_and_end, daemon=True).start()


def _wait_and_end() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "only a process that another has started is a worker"
    parent.join()
    os._exit(1)
