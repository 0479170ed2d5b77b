"""Checkpoints that are either whole and undamaged or not used."""

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
INFERENCE, _TRAINING = "inference", "training"


class Checkpoints:
    """The checkpoints of one run, saved in the background.

    A checkpoint holds the item `inference`, the variables to sample or evaluate with, one
    `inference_NAME` for each other moving average, and `training`, the rest. It counts once it is
    sealed. In a job of several processes all share the folder and make the same calls.
    """

    def __init__(self, folder: epath.PathLike, run_name: str, max_to_keep: int = 2):
        """Opens the folder.

        Args:
            folder: `checkpoints` in the run directory.
            run_name: see `run_record`; checkpoints of another run are not used.
            max_to_keep: as many newest ones.
        """
        self._steps = SealedSteps(absolute(folder), run_name, max_to_keep)

    def save(self, state: TrainState) -> None:
        """Begins to save `state` under its step; the one before is finished first.

        Returns once the arrays are copied to the host: they may be donated.

        Raises:
            OSError: the disk is full.
            InputError: the disk of another process is full.
            Failed: another process could not save the one before.
        """
        averages = _averages(state)
        items = {
            **{item_name(name): tree for name, tree in averages.items()},
            _TRAINING: _rest(state),
        }
        _save(self._steps, int(state.step), items, averages, {})

    def seal_if_saved(self) -> None:
        """Has the save under way sealed if it has ended; does not wait, and is cheap."""
        self._steps.seal_if_saved()

    def finish(self) -> None:
        """Waits until the save under way is sealed, by every process."""
        self._steps.finish()

    def restore(self, abstract: TrainState) -> TrainState | None:
        """Restores the newest sound checkpoint; None when the run has none.

        Those whose save was cut off are removed, damaged ones set aside; each is named. It may
        have been saved by other numbers of processes and devices.

        Args:
            abstract: shapes and shardings of the state.

        Raises:
            InputError: every checkpoint is damaged.
        """
        prepare_content_digest(_averages(abstract))
        sound, damaged = self._steps.newest_sound()
        if sound is None:
            if damaged:
                raise InputError(
                    f"every checkpoint is damaged: {damaged[max(damaged)]}; remove the run "
                    "directory"
                )
            return None
        folder = self._steps.folder / str(sound)
        rest = orbax_options.restore(folder / _TRAINING, _rest(abstract))
        averages = {
            name: orbax_options.restore(folder / item_name(name), tree)
            for name, tree in _averages(abstract).items()
        }
        variables = rest.pop("variables") if "variables" in rest else averages.pop(MAIN)
        return TrainState(**rest, variables=variables, ema=averages)

    def close(self) -> None:
        """Finishes what this process has to do for the save under way."""
        self._steps.close()


def check_mode(mode: str) -> None:
    """Looks whether `Best` has this mode.

    Raises:
        InputError: it has not.
    """
    if mode not in ("min", "max"):
        raise InputError(f"config.best.mode must be 'min' or 'max', got {mode!r}")


class Best:
    """The variables of the step with the best score so far, in a checkpoint of their own."""

    def __init__(self, folder: epath.PathLike, run_name: str, metric: str, mode: str = "min"):
        """Opens the folder.

        Args:
            folder: `best` in the run directory.
            run_name: see `run_record`.
            metric: name of the scalar to compare.
            mode: 'min' or 'max': which of its values are better.

        Raises:
            InputError: the mode is another one.
        """
        check_mode(mode)
        self.metric = metric
        self._compared, self._sign = {"metric": metric, "mode": mode}, 1 if mode == "min" else -1
        self._steps = SealedSteps(absolute(folder), run_name, max_to_keep=1)
        self._score: float | None = None
        self._looked = False

    def offer(self, state: TrainState, scalars: Mapping[str, Any]) -> bool:
        """Begins to save the state's variables if their score is the best; says whether it is.

        NaN is never best. Scores of steps that a resumed run has not reached yet do not count, so
        that in the end it has the same best as if it had never stopped.

        Raises:
            InputError: the metric is not among the scalars.
        """
        metric = self._compared["metric"]
        if metric not in scalars:
            raise InputError(
                f"config.best.metric must be one of {', '.join(sorted(scalars))}, got {metric!r}"
            )
        step, score = int(state.step), float(scalars[metric])
        if not self._looked:
            self._score, self._looked = self._earlier(step), True
        old = self._score
        better = not math.isnan(score) and (old is None or self._sign * (score - old) < 0)
        # All or none: rounding could differ from process to process.
        if not from_first_process(better):
            return False
        averages = _averages(state)
        items = {item_name(name): tree for name, tree in averages.items()}
        _save(self._steps, step, items, averages, {**self._compared, "score": score})
        self._score = score
        return True

    def seal_if_saved(self) -> None:
        """Has the save under way sealed if it has ended; does not wait, and is cheap."""
        self._steps.seal_if_saved()

    def finish(self) -> None:
        """Waits until the save under way is sealed, by every process."""
        self._steps.finish()

    def close(self) -> None:
        """Finishes what this process has to do for the save under way."""
        self._steps.close()

    def _earlier(self, step: int) -> float | None:
        """The best score before `step`, left by an earlier start that compared the same."""
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
    """Saves variables that were not trained here as those of a finished run, and seals them.

    `Run.variables` and `Run.digest` then read them. Beyond the variables little memory is
    needed.

    Args:
        workdir: the run directory; made if it is missing.
        run_name: see `run_record`.
        variables: the model's collections, in any types.
        step: length of the run.

    Raises:
        OSError: the disk is full.
    """
    folder = absolute(workdir) / CHECKPOINTS
    # In the background Orbax would copy everything first.
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
    digests = {name: begin_content_digest(tree) for name, tree in averages.items()}
    content = lambda: {name: finish() for name, finish in digests.items()}  # noqa: E731
    steps.save(step, items, lambda: {**facts, "content": content()})


def _content_digest(variables: PyTree) -> dict[str, Any]:
    """What the seal keeps of variables without other averages."""
    return {"content": {MAIN: content_digest(variables)}}


def _averages(state: TrainState) -> dict[str, PyTree]:
    """What can be sampled with, by name; `main` always is."""
    return {**state.ema, MAIN: state.inference_variables}


def _rest(state: TrainState) -> dict[str, PyTree]:
    rest = {"step": state.step, "opt_state": state.opt_state}
    return {**rest, "variables": state.variables} if MAIN in state.ema else rest


def item_name(ema: str) -> str:
    """The item of a checkpoint that holds a moving average."""
    return INFERENCE if ema == MAIN else f"{INFERENCE}_{ema}"


def absolute(path: epath.PathLike) -> epath.Path:
    """Orbax takes no relative paths."""
    return epath.Path(os.path.abspath(path)) if is_local(path) else epath.Path(path)
