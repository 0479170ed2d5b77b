"""Processes that read ahead: they end when, and only when, the one that reads from them does."""

import multiprocessing
import os
import signal
import threading


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
