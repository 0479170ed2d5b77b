"""Checkpoints that are either complete and undamaged or not used."""

import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree

from launch.errors import InputError
from launch.files import is_local
from launch.runtime.checkpoints import orbax_options, seals
from launch.runtime.checkpoints.content_digest import (
    begin_content_digest,
    content_digest,
    prepare_content_digest,
)
from launch.runtime.checkpoints.sealed_steps import (
    SealedSteps,
    check_whole,
    full_disk_is_an_oserror,
    identity,
)
from launch.runtime.devices.distributed import from_first_process
from launch.runtime.ema import MAIN
from launch.runtime.state import TrainState

CHECKPOINTS, BEST = "checkpoints", "best"
# Items of a checkpoint: `inference` is restored on its own to sample or evaluate.
INFERENCE, _TRAINING = "inference", "training"


class Checkpoints:
    """The checkpoints of one run, saved in the background.

    A checkpoint holds the item `inference`, the variables to sample or evaluate with, one
    `inference_NAME` for each other moving average, and `training`, the rest. It counts once it is
    sealed. The processes of a job share the folder and must make the same calls.
    """

    def __init__(self, folder: epath.PathLike, run_name: str, max_to_keep: int = 2):
        """Opens `checkpoints` in a run directory; those of another `run_name` are not used."""
        self._steps = SealedSteps(absolute(folder), run_name, max_to_keep)

    def save(self, state: TrainState) -> None:
        """Starts to save `state` under its step, after finishing the save before, see `finish`.

        Returns once the arrays are copied to the host: then they may be donated.
        """
        averages = _averages(state)
        items = {
            **{item_name(name): tree for name, tree in averages.items()},
            _TRAINING: _rest(state),
        }
        _save(self._steps, int(state.step), items, averages, {})

    def seal_if_saved(self) -> None:
        """Starts to seal the save under way if it has ended; cheap, never waits."""
        self._steps.seal_if_saved()

    def finish(self) -> None:
        """Waits until all processes have sealed the save under way; see `SealedSteps.finish`."""
        self._steps.finish()

    def restore(self, abstract: TrainState) -> TrainState | None:
        """Restores the newest sound checkpoint; None if the run has none.

        The processes and devices may differ from those that saved it. Unfinished checkpoints are
        removed, damaged ones set aside, each with a message. Raises `InputError` if all are
        damaged.
        """
        # 1. Compile the checksum programs in threads while the checkpoints are being checked.
        prepare_content_digest(_averages(abstract))
        # 2. Choose the checkpoint.
        sound, damaged = self._steps.newest_sound()
        if sound is None:
            if damaged:
                raise InputError(
                    f"every checkpoint is damaged: {damaged[max(damaged)]}; remove the run "
                    "directory"
                )
            return None
        # 3. Restore it, item by item.
        folder = self._steps.folder / str(sound)
        rest = orbax_options.restore(folder / _TRAINING, _rest(abstract))
        averages = {
            name: orbax_options.restore(folder / item_name(name), tree)
            for name, tree in _averages(abstract).items()
        }
        # 4. Put the state together. Without averages, `inference` holds the variables themselves.
        variables = rest.pop("variables") if "variables" in rest else averages.pop(MAIN)
        return TrainState(**rest, variables=variables, ema=averages)

    def close(self) -> None:
        """Finishes this process's part of the save under way."""
        self._steps.close()


def check_mode(mode: str) -> None:
    """Raises `InputError` if `Best` has no such mode."""
    if mode not in ("min", "max"):
        raise InputError(f"config.best.mode must be 'min' or 'max', got {mode!r}")


class Best:
    """The variables of the step with the best score so far, as a checkpoint of their own."""

    def __init__(self, folder: epath.PathLike, run_name: str, metric: str, mode: str = "min"):
        """Opens `best` in a run directory; the 'min' or 'max' of the scalar `metric` is best."""
        check_mode(mode)
        self.metric = metric
        self._compared, self._sign = {"metric": metric, "mode": mode}, 1 if mode == "min" else -1
        self._steps = SealedSteps(absolute(folder), run_name, max_to_keep=1)
        self._score: float | None = None
        self._looked = False

    def offer(self, state: TrainState, scalars: Mapping[str, Any]) -> bool:
        """Starts to save the state's variables if their score is the best; returns whether it is.

        NaN is never best. Raises `InputError` if the metric is not among the scalars.
        """
        metric = self._compared["metric"]
        if metric not in scalars:
            raise InputError(
                f"config.best.metric must be one of {', '.join(sorted(scalars))}, got {metric!r}"
            )
        step, score = int(state.step), float(scalars[metric])
        # 1. At the first offer, take over the best score of an earlier attempt.
        if not self._looked:
            self._score, self._looked = self._earlier(step), True
        # 2. Compare. A tie goes to the earlier step.
        old = self._score
        better = not math.isnan(score) and (old is None or self._sign * (score - old) < 0)
        # All processes or none: rounding could differ between them.
        if not from_first_process(better):
            return False
        # 3. Save the variables without the state of the optimiser.
        averages = _averages(state)
        items = {item_name(name): tree for name, tree in averages.items()}
        _save(self._steps, step, items, averages, {**self._compared, "score": score})
        self._score = score
        return True

    def seal_if_saved(self) -> None:
        """Starts to seal the save under way if it has ended; cheap, never waits."""
        self._steps.seal_if_saved()

    def finish(self) -> None:
        """Waits until all processes have sealed the save under way; see `SealedSteps.finish`."""
        self._steps.finish()

    def close(self) -> None:
        """Finishes this process's part of the save under way."""
        self._steps.close()

    def _earlier(self, step: int) -> float | None:
        # The best score before `step`, from an earlier attempt that compared the same metric.
        # Steps that a resumed run has not reached again do not count: in the end its best is the
        # same as if it had never stopped.
        for later in self._steps.steps():
            if later >= step:
                self._steps.set_aside(later, keep=False)
        sound, _ = self._steps.newest_sound()
        if sound is None:
            return None
        facts = seals.read_facts(self._steps.folder / str(sound))
        return facts["score"] if facts.items() >= self._compared.items() else None


def save_inference(
    workdir: epath.PathLike, run_name: str, variables: PyTree, step: int = 0
) -> None:
    """Saves variables that were not trained here as a finished run of `step` updates, sealed.

    `run.Run` then reads them like those of any run. Little memory is needed beyond the variables.
    Raises `OSError` if the disk is full.
    """
    # 1. Save. In the background Orbax would first copy everything.
    folder = absolute(workdir) / CHECKPOINTS
    options = ocp.CheckpointManagerOptions(create=True, enable_async_checkpointing=False)
    handlers = {INFERENCE: orbax_options.frugal_handler(variables)}
    with (
        full_disk_is_an_oserror(folder),
        orbax_options.freed_memory_returned(),
        ocp.CheckpointManager(folder, options=options, item_handlers=handlers) as manager,
    ):
        saved = manager.save(step, args=orbax_options.save_args({INFERENCE: variables}))
    if not saved:
        raise RuntimeError(f"{folder}: the checkpoint of step {step} was not saved")
    # 2. Seal.
    here = jax.process_index(), jax.process_count()
    if jax.process_index() == 0:
        check_whole(folder / str(step), {INFERENCE: len(jax.tree.leaves(variables))})
    facts = {**_content_digest(variables), **identity(folder, run_name, step)}
    seals.seal(folder / str(step), *here, facts)


def _save(
    steps: SealedSteps,
    step: int,
    items: Mapping[str, PyTree],
    averages: Mapping[str, PyTree],
    facts: Mapping[str, Any],
) -> None:
    steps.finish()
    # The checksums start on the devices now, before the arrays are donated; the thread that seals
    # waits for their results.
    digests = {name: begin_content_digest(tree) for name, tree in averages.items()}
    content = lambda: {name: finish() for name, finish in digests.items()}  # noqa: E731
    steps.save(step, items, lambda: {**facts, "content": content()})


def _content_digest(variables: PyTree) -> dict[str, Any]:
    return {"content": {MAIN: content_digest(variables)}}


def _averages(state: TrainState) -> dict[str, PyTree]:
    # `main` is always there.
    return {**state.ema, MAIN: state.inference_variables}


def _rest(state: TrainState) -> dict[str, PyTree]:
    # If an average is kept, `inference` holds that average, so the variables belong to the rest.
    rest = {"step": state.step, "opt_state": state.opt_state}
    return {**rest, "variables": state.variables} if MAIN in state.ema else rest


def item_name(ema: str) -> str:
    """The item of a checkpoint that holds the moving average of this name."""
    return INFERENCE if ema == MAIN else f"{INFERENCE}_{ema}"


def absolute(path: epath.PathLike) -> epath.Path:
    """An absolute path, as Orbax accepts no relative ones."""
    return epath.Path(os.path.abspath(path)) if is_local(path) else epath.Path(path)
