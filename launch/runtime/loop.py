"""The training loop, the same for diffusion models and classifiers."""

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ml_collections
import numpy as np
from etils import epath
from jax.sharding import Mesh
from tqdm import tqdm

from input_pipeline.files import InputError
from launch.runtime.app import Diverged
from launch.runtime.checkpoint import Checkpoints, latest_step
from launch.runtime.mesh import put_batch, with_shardings
from launch.runtime.metrics import MetricWriter
from launch.runtime.state import TrainState

Scalars = Mapping[str, Any]


def check_training(config: ml_collections.ConfigDict, mesh: Mesh) -> None:
    """Looks for numbers that `fit` could not work with, before a run directory is begun.

    Raises:
        InputError: names the field.
    """
    for field, least in (("total_steps", 1), ("batch_size", 1), ("seed", 0), ("seeds", 1)):
        if field in config and config[field] < least:
            raise InputError(f"config.{field}={config[field]}: at least {least} is needed")
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.batch_size % ways:
        raise InputError(
            f"config.batch_size={config.batch_size} cannot be split over the {ways} devices of "
            "mesh.data x mesh.fsdp: use a multiple"
        )


def fit(
    *,
    workdir: epath.Path,
    config: ml_collections.ConfigDict,
    mesh: Mesh,
    abstract: TrainState,
    create: Callable[[], TrainState],
    train_step: Callable[[TrainState, Any], tuple[TrainState, Scalars]],
    batches: Callable[[int, int], Iterable[Mapping[str, np.ndarray]]],
    evaluate: Callable[[TrainState], Scalars] | None = None,
    label: str = "train",
) -> TrainState:
    """Trains up to `config.total_steps`, from the newest sound checkpoint of `workdir` if any.

    Args:
        workdir: the run directory.
        config: `total_steps`, and the intervals `log_every`, `checkpoint_every`, `evaluate_every`
            in steps (0: never; the last step is always evaluated and saved).
        mesh: where batches go.
        abstract: shapes of the state.
        create: makes the state of step 0.
        train_step: jitted; donates the state.
        batches: `batches(start, stop)` yields this process's part of those batches.
        evaluate: scalars of a state.
        label: what the progress bar says.

    Raises:
        Diverged: the loss is not finite.
    """
    # However it ends, the checkpoint under way is finished: it can be the last good one.
    with contextlib.closing(Checkpoints(workdir / "checkpoints")) as checkpoints:
        state = checkpoints.restore(with_shardings(mesh, abstract))
        state = create() if state is None else state
        start, total = int(state.step), config.total_steps
        if start >= total:
            return state
        with contextlib.closing(_Log(workdir, start, total, label)) as log:
            for step, batch in enumerate(batches(start, total), start=start + 1):
                state, metrics = train_step(state, put_batch(mesh, batch))
                save = _due(step, config.checkpoint_every, total)
                # What is saved has to be finite, so the loss is read then, too.
                log.after(step, metrics, read=save or _due(step, config.log_every, total))
                # Evaluate, save, and only then take the next batch: a resumed run repeats nothing.
                if evaluate and _due(step, config.evaluate_every, total):
                    log.flush()
                    log.write(step, evaluate(state))
                if save:
                    log.flush()
                    checkpoints.save(state)
                checkpoints.seal_if_saved()
    return state


def _due(step: int, every: int, total: int) -> bool:
    return step == total or (every > 0 and step % every == 0)


class _Log:
    """Reads metrics one step late, so that the device never waits for the host."""

    def __init__(self, workdir: epath.Path, start: int, total: int, label: str):
        self._where, self._writer = workdir, MetricWriter(workdir, start)
        self._pending: tuple[int, Scalars] | None = None
        self._last = (start, time.perf_counter())
        self._bar = tqdm(total=total, initial=start, desc=label, unit="step", mininterval=1.0)

    def after(self, step: int, metrics: Scalars, read: bool) -> None:
        self.flush()
        if read:
            self._pending = (step, metrics)
        self._bar.update()

    def flush(self) -> None:
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        scalars = {name: float(value) for name, value in metrics.items()}
        if not np.isfinite(scalars["loss"]):
            raise Diverged(
                f"{self._where}: the loss of step {step} is {scalars['loss']} (batch {step - 1}; "
                f"newest sealed checkpoint: {latest_step(self._where)}): lower the learning rate "
                "or clip the gradient"
            )
        now = time.perf_counter()
        rate = (step - self._last[0]) / (now - self._last[1])
        self._last = (step, now)
        self._bar.set_postfix(loss=f"{scalars['loss']:.4f}")
        self.write(step, {**scalars, "steps_per_second": rate})

    def write(self, step: int, scalars: Scalars) -> None:
        self._writer.write(step, {name: float(value) for name, value in scalars.items()})

    def close(self) -> None:
        """Ends the bar's line and the files; what is pending has been flushed, or is given up."""
        self._bar.close()
        self._writer.close()
