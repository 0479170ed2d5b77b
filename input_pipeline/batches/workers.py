"""Processes that read ahead: they end when, and only when, the one that reads from them does."""

import multiprocessing
import os
import shutil
import signal
import threading

from launch.cli import say
from launch.cpus import usable_cpus

ALL = -1
_SHARED_MEMORY = "/dev/shm"  # macOS has none of its own size.
_BATCHES = 4  # that a worker has there


def count_workers(asked: int, batch_bytes: int, readers: int = 1) -> int:
    """Processes of one reader.

    Args:
        asked: `config.loader_workers`: so many, shared among the readers; `ALL` is one for each CPU
            that this process may use but one, as far as shared memory has room for their batches.
        batch_bytes: of the images of a batch that this process loads.
        readers: that read at the same time.
    """
    if asked != ALL:
        return -(-asked // readers)
    most = max(1, usable_cpus() - 1)
    count = -(-most // readers)
    if not os.path.isdir(_SHARED_MEMORY):
        return count
    # Half of it: others use it too, and what is free now may not stay so.
    room = shutil.disk_usage(_SHARED_MEMORY).free // 2 // (_BATCHES * batch_bytes * readers)
    if room < count:
        say(
            f"config.loader_workers={ALL}: {room or 'threads, not'} of {count} processes, "
            f"as {_SHARED_MEMORY} has no room for the batches of more; make it larger"
        )
    return min(room, count)


def end_with_parent(index: int, count: int) -> None:
    """Is called first in a worker.

    Notices to leave go to all processes of a job, but what they mean is for the parent to decide,
    and it may want some more batches. A parent that is killed cannot end its workers.

    Args:
        index: of the worker.
        count: of the workers.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_wait_and_end, daemon=True).start()


def _wait_and_end() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "only a process that another has started is a worker"
    parent.join()
    os._exit(1)
