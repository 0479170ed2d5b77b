"""Checkpoints that are either whole and undamaged or not used."""

import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from input_pipeline.files import InputError, is_local, read_json, sha256, write_json
from launch.runtime.state import TrainState

# Orbax checks no contents (65 of 65 flipped bits went unnoticed), so we do.
DIGESTS = "digests.json"


class Checkpoints:
    """The checkpoints of one run, saved in the background.

    A checkpoint holds two items: `inference`, the variables to sample or evaluate with, and
    `training`, the rest. It counts once its digests are written, after Orbax has committed it.
    """

    def __init__(self, folder: epath.Path | str, max_to_keep: int = 2):
        self._folder = _absolute(folder)
        options = ocp.CheckpointManagerOptions(max_to_keep=max_to_keep, create=True)
        self._manager = ocp.CheckpointManager(self._folder, options=options)
        self._pending: int | None = None

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
        self._pending = step

    def finish(self) -> None:
        """Waits for the save under way and seals it with its digests."""
        if self._pending is None:
            return
        step, self._pending = self._pending, None
        with _full_disk_is_an_oserror(self._folder):
            self._manager.wait_until_finished()
        folder = self._folder / str(step)
        if jax.process_index() == 0:
            write_json(folder / DIGESTS, _digests(folder))

    def restore(self, abstract: TrainState) -> TrainState | None:
        """Restores the newest sound checkpoint; None when the run has none.

        Unsealed checkpoints (a save that was cut off) are removed, damaged ones named and set
        aside.

        Args:
            abstract: shapes and shardings of the state.

        Raises:
            InputError: every checkpoint is damaged.
        """
        damaged = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            fault = find_fault(self._folder / str(step))
            if fault is None:
                inference, training = _split(abstract)
                items = ocp.args.Composite(
                    inference=ocp.args.StandardRestore(inference),
                    training=ocp.args.StandardRestore(training),
                )
                restored = self._manager.restore(step, args=items)
                return _join(restored["inference"], restored["training"])
            self._set_aside(step, keep=fault != UNSEALED)
            if fault != UNSEALED:
                damaged.append(fault)
                logging.warning("checkpoint not used: %s", fault)
        if damaged:
            raise InputError(f"no sound checkpoint is left: {damaged[0]}; remove the run directory")
        return None

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
        expected = read_json(folder / DIGESTS)
    except InputError as error:
        return str(error)
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


def load_inference(workdir: epath.Path | str, abstract: Any) -> tuple[Any, int]:
    """Restores the inference variables of a run's newest checkpoint.

    Args:
        workdir: the run directory.
        abstract: their shapes and shardings.

    Returns:
        The variables and the step they come from.

    Raises:
        InputError: no checkpoint, a damaged one, or one of another model.
    """
    step = latest_step(workdir)
    if step is None:
        raise InputError(f"{workdir} holds no finished checkpoint: train it first")
    folder = _absolute(workdir) / "checkpoints" / str(step)
    fault = find_fault(folder)
    if fault is not None:
        raise InputError(f"{fault}: remove {folder} and run the training command again")
    _check_fit(folder / "inference", abstract)
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder / "inference", abstract), step


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


def digest(workdir: epath.Path | str, step: int) -> str:
    """One digest for all files of a checkpoint."""
    return sha256(epath.Path(workdir) / "checkpoints" / str(step) / DIGESTS)


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


def _digests(folder: epath.Path) -> dict[str, str]:
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
