"""Saving and restoring with little memory beyond the arrays themselves."""

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp

# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def frugal_handler(tree: Any) -> ocp.PyTreeCheckpointHandler:
    """Orbax's handler with limits, without which it holds a second copy of the whole tree.

    Args:
        tree: what it will save or restore.
    """
    # No array may be as large as the limit, in the type that it is stored in or is read as.
    limit = max([2**24, *(8 * leaf.size for leaf in jax.tree.leaves(tree))])
    implementation = ocp.BasePyTreeCheckpointHandler(
        save_concurrent_bytes=limit,
        save_device_host_concurrent_bytes=limit,
        restore_concurrent_bytes=limit,
        use_compression=False,  # weights hardly shrink, and it takes memory and time
    )
    return ocp.PyTreeCheckpointHandler(handler_impl=implementation)


@contextlib.contextmanager
def freed_memory_returned() -> Iterator[None]:
    """Large blocks go back to the system when they are freed; glibc keeps them for each thread.

    What it keeps of Orbax's buffers can be half of a model.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # not glibc
        yield
        return
    mallopt(_M_MMAP_THRESHOLD, 2**20)
    try:
        yield
    finally:
        # Where glibc's own adjustment ends.
        mallopt(_M_MMAP_THRESHOLD, 2**25)
        mallopt(_M_TRIM_THRESHOLD, 2**26)
