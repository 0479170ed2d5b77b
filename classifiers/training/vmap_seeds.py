"""Trains all seeds of a run at once, as one vectorised step: so small networks fill a chip."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath
from jax.sharding import Mesh

from classifiers.training.training import Training
from launch.errors import InputError
from launch.runtime.checkpoints import checkpoint
from launch.runtime.checkpoints.inference import latest_step
from launch.runtime.devices.distributed import decide_on_first_process, on_first_process
from launch.runtime.devices.mesh import state_shardings
from launch.runtime.ema import MAIN
from launch.runtime.run_record import seed_name
from launch.runtime.state import TrainState
from launch.runtime.types import Batch, Reader, Variables

FOLDER = "seeds"
# All seeds share the step; everything else has them as its first axis.
_AXES: Any = TrainState(step=None, variables=0, opt_state=0, ema=0)


def check(config: ml_collections.ConfigDict) -> None:
    """Raises InputError for what cannot be kept of each seed when all are trained together."""
    if not config.get("vmap_seeds"):
        return
    if config.get("best"):
        raise InputError(
            "config.best cannot be combined with vmap_seeds, as each seed has its own best; set "
            "only one of them"
        )
    if extra := sorted(set(config.ema) - {MAIN}):
        raise InputError(
            f"config.ema.{extra[0]} cannot be combined with vmap_seeds, which keeps only {MAIN!r} "
            "of each seed; remove one of them"
        )


def check_preflight(config: ml_collections.ConfigDict) -> None:
    """Raises InputError for `vmap_seeds`: preflight compiles one seed's step."""
    if config.get("vmap_seeds"):
        raise InputError(
            "--preflight compiles the step of one seed; leave config.vmap_seeds out, and "
            "multiply the memory of parameters and activations by config.seeds"
        )


class StackedTraining(Training):
    """A run whose seeds are one state.

    Arrays of the state are [seeds, ...], those of batches [b, seeds, ...]. Metrics are means over
    the seeds; `NAME_by_seed` has one value per seed of loss and accuracy.
    """

    def update(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
        """One step of all seeds, see `Training.update`."""
        # Batches: [b, seeds, ...]
        update = jax.vmap(super().update, in_axes=(_AXES, 1), out_axes=(_AXES, 0))
        state, metrics = update(state, batch)
        # A seed whose batch has no example of a domain has NaN there, and does not count.
        means = {
            name: jax.tree.map(jnp.nanmean if isinstance(values, dict) else jnp.mean, values)
            for name, values in metrics.items()
        }
        by_seed = {f"{name}_by_seed": metrics[name] for name in ("loss", "accuracy")}
        return state, {**means, **by_seed}


def stacked(training: Training) -> StackedTraining:
    """The same run for `config.seeds` states at once."""
    count = training.config.seeds

    def grow(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype)

    grown = jax.tree.map(grow, training.abstract)
    fields = {field.name: getattr(training, field.name) for field in dataclasses.fields(training)}
    fields["abstract"] = dataclasses.replace(grown, step=training.abstract.step)
    return StackedTraining(**fields)


def create(states: Sequence[TrainState], mesh: Mesh) -> TrainState:
    """Joins the states of step 0, one per seed; for a moment both copies are in memory."""

    def join(*states: TrainState) -> TrainState:
        whole = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        return dataclasses.replace(whole, step=states[0].step)

    # Laid out when it is made: the joined state never lies whole on one device.
    shardings = state_shardings(mesh, jax.eval_shape(join, *states))
    return jax.jit(join, out_shardings=shardings)(*states)


def variables_of(state: TrainState, seed: int) -> Variables:
    """The inference variables of one seed."""
    return jax.tree.map(lambda leaf: leaf[seed], state.inference_variables)


def batches(readers: Sequence[Reader]) -> Reader:
    """A reader of all seeds' batches, [b, seeds, ...], from the reader of each seed."""

    def read(start: int, stop: int) -> Iterator[Batch]:
        for seed_batches in zip(*(reader(start, stop) for reader in readers), strict=True):
            yield {
                # Seeds second: axis 0 stays the batch, which the devices split.
                name: np.stack([batch[name] for batch in seed_batches], axis=1)
                for name in seed_batches[0]
            }

    return read


def write(
    workdir: epath.Path, run_name: str, state: TrainState, total_steps: int, count: int
) -> None:
    """Writes each seed as a finished run of its own, `seed_n`, for evaluation and warm starts.

    Finished seeds are left alone; a seed whose writing was interrupted is written again.
    """
    for seed in range(count):
        folder = workdir / f"seed_{seed}"
        if decide_on_first_process(functools.partial(latest_step, folder)) == total_steps:
            continue
        # What is left there comes from an interrupted write, or from a shorter run.
        on_first_process(functools.partial(_clear, folder))
        name = seed_name(run_name, folder.name)
        checkpoint.save_inference(folder, name, variables_of(state, seed), total_steps)


def _clear(folder: epath.Path) -> None:
    if folder.exists():
        folder.rmtree()
