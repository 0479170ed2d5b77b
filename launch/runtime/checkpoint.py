"""Checkpoints that are either whole and undamaged or not used."""

import contextlib
import errno
import hashlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from input_pipeline.files import InputError, is_local, read_json, sha256, write_json
from launch.runtime.orbax_memory import freed_memory_returned, frugal_handler
from launch.runtime.state import TrainState

# Orbax checks no contents (65 of 65 flipped bits went unnoticed), so we do.
DIGESTS = "digests.json"
# Arrays are stored in pieces of this size: a host that needs a part of one need not read it all.
CHUNK_BYTES = 2**23


class Checkpoints:
    """The checkpoints of one run, saved in the background.

    A checkpoint holds two items: `inference`, the variables to sample or evaluate with, and
    `training`, the rest. It counts once its digests are written, after Orbax has committed it.
    """

    def __init__(self, folder: epath.Path | str, max_to_keep: int = 2):
        self._folder = _absolute(folder)
        options = ocp.CheckpointManagerOptions(max_to_keep=max_to_keep, create=True)
        self._manager = ocp.CheckpointManager(self._folder, options=options)
        self._pending: tuple[int, str] | None = None

    def save(self, state: TrainState) -> None:
        """Begins to save `state` under its step; the one before is finished first."""
        self.finish()
        step = int(state.step)
        inference, training = _split(state)
        items = ocp.args.Composite(
            inference=ocp.args.StandardSave(inference), training=ocp.args.StandardSave(training)
        )
        # Orbax answers False, without a word, for a step that is not newer than the last.
        with _full_disk_is_an_oserror(self._folder):
            saved = self._manager.save(step, args=items, force=True)
        if not saved:
            raise RuntimeError(f"{self._folder}: the checkpoint of step {step} was not saved")
        self._pending = step, _content_digest(inference)

    def seal_if_saved(self) -> None:
        """Seals the save under way if it has ended; does not wait for it."""
        if self._pending is not None and not self._manager.is_saving_in_progress():
            self.finish()

    def finish(self) -> None:
        """Waits for the save under way and seals it with its digests."""
        if self._pending is None:
            return
        (step, content), self._pending = self._pending, None
        with _full_disk_is_an_oserror(self._folder):
            self._manager.wait_until_finished()
        folder = self._folder / str(step)
        if jax.process_index() == 0:
            write_json(folder / DIGESTS, {"content": content, "files": _file_digests(folder)})

    def restore(self, abstract: TrainState) -> TrainState | None:
        """Restores the newest sound checkpoint; None when the run has none.

        Unsealed checkpoints (a save that was cut off) are removed, damaged ones named and set
        aside.

        Args:
            abstract: shapes and shardings of the state.

        Raises:
            InputError: every checkpoint is damaged.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        faults = {step: find_fault(self._folder / str(step)) for step in steps}
        sound = next((step for step in steps if faults[step] is None), None)
        damaged = [step for step in steps if faults[step] not in (None, UNSEALED)]
        if sound is None and damaged:
            raise InputError(
                f"no sound checkpoint is left: {faults[damaged[0]]}; remove the run directory"
            )
        for step in steps:
            if faults[step] is not None and (sound is None or step > sound):
                self._set_aside(step, keep=step in damaged)
                if step in damaged:
                    logging.warning("checkpoint not used: %s", faults[step])
        if sound is None:
            return None
        inference, training = _split(abstract)
        items = ocp.args.Composite(
            inference=ocp.args.StandardRestore(inference),
            training=ocp.args.StandardRestore(training),
        )
        restored = self._manager.restore(sound, args=items)
        return _join(restored["inference"], restored["training"])

    def close(self) -> None:
        """Finishes the save under way."""
        self.finish()
        self._manager.close()

    def _set_aside(self, step: int, keep: bool) -> None:
        folder = self._folder / str(step)
        if keep:
            target = self._folder.parent / f"damaged_checkpoint_{step}"
            if not target.exists():
                folder.rename(target)
        if folder.exists():
            folder.rmtree()
        self._manager.reload()


UNSEALED = "unsealed"


def find_fault(folder: epath.Path) -> str | None:
    """Compares a checkpoint's files with its digests: what is wrong, or None."""
    if not (folder / DIGESTS).exists():
        return UNSEALED
    try:
        expected = read_json(folder / DIGESTS)["files"]
    except (InputError, KeyError) as error:
        return f"{folder / DIGESTS} cannot be read ({error})"
    for name, digest in expected.items():
        if not (folder / name).exists():
            return f"{folder / name} is missing"
        if sha256(folder / name) != digest:
            return f"{folder / name} is damaged (its digest differs)"
    return None


def latest_step(workdir: epath.Path | str) -> int | None:
    """Step of the newest sealed checkpoint of a run; None when there is none."""
    folder = epath.Path(workdir) / "checkpoints"
    steps = (
        [int(path.parent.name) for path in folder.glob(f"*/{DIGESTS}")] if folder.exists() else []
    )
    return max(steps, default=None)


def load_inference(workdir: epath.Path | str, abstract: Any, total_steps: int) -> Any:
    """Restores the inference variables of a finished run.

    Args:
        workdir: the run directory.
        abstract: their shapes, and shardings where they shall be sharded.
        total_steps: length of the run.

    Raises:
        InputError: no checkpoint, a damaged one, one of another model, or the run is not finished.
    """
    folder = _newest(workdir)
    if int(folder.name) < total_steps:
        raise InputError(
            f"{workdir} has come to step {folder.name} of {total_steps}: finish its training first"
        )
    fault = find_fault(folder)
    if fault is not None:
        raise InputError(f"{fault}: remove {folder} and run the training command again")
    _check_fit(folder / "inference", abstract)
    # Without a sharding Orbax would ask for the devices that have saved it.
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or here),
        abstract,
    )
    restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
    with freed_memory_returned(), ocp.Checkpointer(frugal_handler(abstract)) as checkpointer:
        args = ocp.args.PyTreeRestore(item=abstract, restore_args=restore_args)
        return checkpointer.restore(folder / "inference", args=args)


def save_inference(workdir: epath.Path | str, variables: Any, step: int = 0) -> None:
    """Saves variables that were not trained here as those of a finished run, and seals them.

    `load_inference` and `digest` then read them. Beyond the variables little memory is needed.

    Args:
        workdir: the run directory; made if it is missing.
        variables: the model's collections, in any types.
        step: length of the run.

    Raises:
        OSError: the disk is full.
    """
    folder = _absolute(workdir) / "checkpoints"
    # In the background Orbax would copy everything first.
    options = ocp.CheckpointManagerOptions(create=True, enable_async_checkpointing=False)
    handlers = {"inference": frugal_handler(variables)}
    chunks = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), variables)
    items = ocp.args.Composite(inference=ocp.args.PyTreeSave(variables, save_args=chunks))
    with (
        _full_disk_is_an_oserror(folder),
        freed_memory_returned(),
        ocp.CheckpointManager(folder, options=options, item_handlers=handlers) as manager,
    ):
        saved = manager.save(step, args=items)
    if not saved:
        raise RuntimeError(f"{folder}: the checkpoint of step {step} was not saved")
    if jax.process_index() == 0:
        digests = {
            "content": _content_digest(variables),
            "files": _file_digests(folder / str(step)),
        }
        write_json(folder / str(step) / DIGESTS, digests)


def inference_shapes(workdir: epath.Path | str) -> Any:
    """Shapes and types of a run's newest inference variables, as they are stored.

    Raises:
        InputError: there is no sealed checkpoint.
    """
    metadata = ocp.StandardCheckpointHandler().metadata(_newest(workdir) / "inference")
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
        dict(metadata),
        is_leaf=lambda leaf: hasattr(leaf, "shape"),
    )


def digest(workdir: epath.Path | str) -> str:
    """Digest of a run's newest inference variables: equal values have equal digests.

    Raises:
        InputError: there is no sealed checkpoint.
    """
    return read_json(_newest(workdir) / DIGESTS)["content"]


def _newest(workdir: epath.Path | str) -> epath.Path:
    step = latest_step(workdir)
    if step is None:
        raise InputError(f"{workdir} holds no finished checkpoint: train it first")
    return _absolute(workdir) / "checkpoints" / str(step)


def _check_fit(folder: epath.Path, abstract: Any) -> None:
    """Names the first array that is another one; Orbax's own message has many lines or no name."""
    stored, ours = _shapes(ocp.StandardCheckpointHandler().metadata(folder)), _shapes(abstract)
    for name in sorted(stored.keys() | ours.keys()):
        found, wanted = stored.get(name, "missing"), ours.get(name, "missing")
        if found != wanted:
            raise InputError(
                f"{folder} does not fit the config's model: {name} is {found} there and {wanted} "
                "in the model; name the run of this model"
            )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape)
        for path, leaf in leaves
    }


@contextlib.contextmanager
def _full_disk_is_an_oserror(folder: epath.Path) -> Iterator[None]:
    """Orbax wraps it in a ValueError."""
    try:
        yield
    except ValueError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error


def _absolute(path: epath.Path | str) -> epath.Path:
    """Orbax takes no relative paths."""
    return epath.Path(os.path.abspath(path)) if is_local(path) else epath.Path(path)


def _content_digest(tree: Any) -> str:
    """SHA-256 over names, shapes and values; of what this process holds where it holds not all."""
    result = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        result.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
        whole = leaf.is_fully_addressable
        for part in [leaf] if whole else [shard.data for shard in leaf.addressable_shards]:
            result.update(np.ascontiguousarray(part).tobytes())
    return result.hexdigest()


def _file_digests(folder: epath.Path) -> dict[str, str]:
    return {
        str((parent / name).relative_to(folder)): sha256(parent / name)
        for parent, _, names in folder.walk()
        for name in sorted(names)
        if name != DIGESTS
    }


def _split(state: TrainState) -> tuple[Any, Any]:
    training = {"step": state.step, "opt_state": state.opt_state}
    if state.ema is None:
        return state.variables, training
    return state.ema, {**training, "variables": state.variables}


def _join(inference: Any, training: Any) -> TrainState:
    own = "variables" in training
    return TrainState(
        step=training["step"],
        opt_state=training["opt_state"],
        variables=training["variables"] if own else inference,
        ema=inference if own else None,
    )
