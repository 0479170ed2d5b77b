"""How Orbax is set up: what it writes, and how little memory it needs beyond the arrays."""

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

# Arrays are stored in pieces of this size, so that a host that needs a part need not read it all.
CHUNK_BYTES = 2**23
# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Orbax finds the files that it wrote by globbing with their path.
_NO_PLAIN_TEXT = "*?[\\"
# In a store, TensorStore takes what follows a # for a fragment of the URL.
_NO_KEY = _NO_PLAIN_TEXT + "#"
# Bucket names that TensorStore accepts (cloud.google.com/storage/docs/buckets#naming).
_BUCKET = re.compile(r"gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](/|$)")


def check_path(path: epath.PathLike) -> None:
    """Raises `InputError` if Orbax cannot save under a path: arrays would silently be missing."""
    if not is_local(path) and not _BUCKET.match(os.fspath(path)):
        raise InputError(
            f"{path} is not the name of a bucket; use at least 3 letters, digits, - or _"
        )
    refused = _NO_PLAIN_TEXT if is_local(path) else _NO_KEY
    for character in os.path.abspath(path) if is_local(path) else os.fspath(path):
        if character in refused:
            raise InputError(
                f"{path}: checkpoints cannot be saved under a path with {character!r}; choose "
                "another folder"
            )


def find_gap(folder: epath.Path, num_arrays: int) -> str | None:
    """What a saved item lacks of its `num_arrays`, or None if it is complete."""
    # Orbax can report a save as done when it is not.
    # 1. Without its manifest, an OCDBT database (TensorStore's format) is unreadable.
    manifest = folder / "manifest.ocdbt"
    if not manifest.exists():
        return f"{manifest} is missing"
    # 2. Count the arrays by their metadata files.
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
    """Drops errors that Orbax logs, with their traceback, before it raises them."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.levelno >= logging.ERROR and f"{os.sep}orbax{os.sep}" in record.pathname)


@functools.cache
def raise_only() -> None:
    """Makes Orbax raise its errors only, so that nothing is printed above the line about them."""
    absl.logging.get_absl_logger().addFilter(_RaisedAsWell())
    earlier = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        # From writes in flight when the first one failed; nobody waits for them.
        if str(unraisable.exc_value) != "Event loop is closed":
            earlier(unraisable)

    sys.unraisablehook = hook


def is_left_waiting() -> bool:
    """Whether threads of a failed save still wait: Orbax gives them 20 minutes."""
    threads = threading.enumerate()
    return any(type(thread).__module__.startswith("orbax.") for thread in threads)


def save_args(items: Mapping[str, PyTree]) -> ocp.args.Composite:
    """Orbax's arguments for saving trees of arrays by name."""
    chunks = ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES)
    return ocp.args.Composite(
        **{
            name: ocp.args.PyTreeSave(tree, save_args=jax.tree.map(lambda _: chunks, tree))
            for name, tree in items.items()
        }
    )


def saving_handlers() -> ocp.handlers.DefaultCheckpointHandlerRegistry:
    """Handlers that save trees of any name in the background."""
    # Weights hardly shrink, and trying takes longer than writing them.
    implementation = ocp.BasePyTreeCheckpointHandler(use_compression=False)
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    handler = ocp.PyTreeCheckpointHandler(handler_impl=implementation)
    registry.add(None, ocp.args.PyTreeSave, handler)
    return registry


def restore(folder: epath.Path, abstract: PyTree) -> PyTree:
    """Restores one item, whatever devices saved it; leaves without a sharding go to one device."""
    # Without a sharding Orbax would look for the devices that saved the array.
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
    """Raises `InputError` naming the first array whose name or shape differs from `abstract`."""
    # Orbax's own message has many lines, or no name.
    stored, expected = _shapes(ocp.StandardCheckpointHandler().metadata(folder)), _shapes(abstract)
    for name in sorted(stored.keys() | expected.keys()):
        stored_shape, model_shape = stored.get(name, "missing"), expected.get(name, "missing")
        if stored_shape != model_shape:
            raise InputError(
                f"{folder}: {name} must have the model's shape {model_shape}, got {stored_shape}; "
                "use the run of this model"
            )


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape)
        for path, leaf in leaves
    }


def frugal_handler(tree: Any) -> ocp.PyTreeCheckpointHandler:
    """A handler with memory limits; Orbax would hold a second copy of the whole tree without."""
    # A single array must not exceed the limit, neither as stored nor as read: 8 bytes an element is
    # the widest type.
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
    """Makes glibc return large blocks to the system when they are freed."""
    # It would keep them for each thread: Orbax's buffers can add up to half of a model.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # not glibc
        yield
        return
    # Blocks from 1 MiB get a mapping of their own, which ends when they are freed.
    mallopt(_M_MMAP_THRESHOLD, 2**20)
    try:
        yield
    finally:
        # Setting a threshold turns off glibc's own adjustment: set the values where that ends.
        mallopt(_M_MMAP_THRESHOLD, 2**25)
        mallopt(_M_TRIM_THRESHOLD, 2**26)
