"""How Orbax is set up: what it writes, and with how much memory beyond the arrays themselves."""

import contextlib
import ctypes
import functools
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import absl.logging
import jax
import orbax.checkpoint as ocp
import tensorstore
from etils import epath
from jaxtyping import PyTree

from launch.errors import InputError
from launch.files import is_local

# Arrays are stored in pieces of this size: a host that needs a part of one need not read it all.
CHUNK_BYTES = 2**23
# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Orbax looks for the files that it has written with a pattern, and takes a path for one.
_NO_PLAIN_TEXT = "*?[\\"
# In a store's, TensorStore takes what follows for no part of the name.
_NO_KEY = _NO_PLAIN_TEXT + "#"
# TensorStore takes no others (cloud.google.com/storage/docs/buckets#naming).
_BUCKET = re.compile(r"gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](/|$)")


def check_path(path: epath.PathLike) -> None:
    """Looks whether Orbax can save under a path.

    Raises:
        InputError: it cannot: a checkpoint would lack its arrays.
    """
    if not is_local(path) and not _BUCKET.match(os.fspath(path)):
        raise InputError(
            f"{path} is not the name of a bucket; it has at least 3 letters, digits, - or _"
        )
    refused = _NO_PLAIN_TEXT if is_local(path) else _NO_KEY
    for character in os.path.abspath(path) if is_local(path) else os.fspath(path):
        if character in refused:
            raise InputError(
                f"{path}: checkpoints cannot be saved under a path with {character!r}; "
                "name another folder"
            )


def find_gap(folder: epath.Path, num_arrays: int) -> str | None:
    """What a saved tree lacks, or None: Orbax can say that it is written when it is not.

    Args:
        folder: of the item.
        num_arrays: that the tree has.
    """
    manifest = folder / "manifest.ocdbt"
    if not manifest.exists():
        return f"{manifest} is missing"
    bucket, _, key = os.fspath(folder).removeprefix("gs://").partition("/")
    base = (
        {"driver": "file", "path": f"{folder}/"}
        if is_local(folder)
        else {"driver": "gcs", "bucket": bucket, "path": f"{key}/"}
    )
    try:
        store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
        names = [name for name in store.list().result() if name.endswith(b"/.zarray")]
    except ValueError as error:
        return f"{folder} cannot be read ({str(error).splitlines()[0]})"
    if len(names) != num_arrays:
        return f"{folder} has {len(names)} of {num_arrays} arrays"
    return None


class _RaisedAsWell(logging.Filter):
    """Leaves out the errors that Orbax logs, traceback and all, before it raises them."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.levelno >= logging.ERROR and f"{os.sep}orbax{os.sep}" in record.pathname)


@functools.cache
def raise_only() -> None:
    """Has Orbax raise its errors, and print nothing above the line that tells of them."""
    absl.logging.get_absl_logger().addFilter(_RaisedAsWell())
    earlier = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        # Of the writes that were under way when the first one failed; nobody waits for them.
        if str(unraisable.exc_value) != "Event loop is closed":
            earlier(unraisable)

    sys.unraisablehook = hook


def is_left_waiting() -> bool:
    """Whether threads of a save that has failed wait for it: Orbax gives them 20 minutes."""
    threads = threading.enumerate()
    return any(type(thread).__module__.startswith("orbax.") for thread in threads)


def save_args(items: Mapping[str, PyTree]) -> ocp.args.Composite:
    """What Orbax is to save: trees of arrays by name."""
    chunks = ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES)
    return ocp.args.Composite(
        **{
            name: ocp.args.PyTreeSave(tree, save_args=jax.tree.map(lambda _: chunks, tree))
            for name, tree in items.items()
        }
    )


def saving_handlers() -> ocp.handlers.DefaultCheckpointHandlerRegistry:
    """For saving trees of any name in the background."""
    # Weights hardly shrink, and to try takes longer than to write them.
    implementation = ocp.BasePyTreeCheckpointHandler(use_compression=False)
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    handler = ocp.PyTreeCheckpointHandler(handler_impl=implementation)
    registry.add(None, ocp.args.PyTreeSave, handler)
    return registry


def restore(folder: epath.Path, abstract: PyTree) -> PyTree:
    """Restores one saved tree, whatever devices have saved it.

    Args:
        folder: of the item.
        abstract: shapes and types, with shardings; where there is none, it is this process's first
            device.
    """
    # Without a sharding Orbax would ask for the devices that have saved it.
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or here),
        abstract,
    )
    restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
    with freed_memory_returned(), ocp.Checkpointer(frugal_handler(abstract)) as checkpointer:
        args = ocp.args.PyTreeRestore(item=abstract, restore_args=restore_args)
        return checkpointer.restore(folder, args=args)


def check_fit(folder: epath.Path, abstract: PyTree) -> None:
    """Checks that a saved tree has the names and shapes of ours.

    Raises:
        InputError: names the first array that is another one; Orbax's own message has many lines
            or no name.
    """
    stored, expected = _shapes(ocp.StandardCheckpointHandler().metadata(folder)), _shapes(abstract)
    for name in sorted(stored.keys() | expected.keys()):
        stored_shape, model_shape = stored.get(name, "missing"), expected.get(name, "missing")
        if stored_shape != model_shape:
            raise InputError(
                f"{folder}: {name} must have the model's shape {model_shape}, got "
                f"{stored_shape}; name the run of this model"
            )


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape)
        for path, leaf in leaves
    }


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
