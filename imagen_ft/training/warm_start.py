"""What training begins with, where there is nothing to resume: other weights, or new ones."""

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.sharding import Mesh

from imagen_ft import weights
from imagen_ft.cascade.loading import check_public, check_same_model, load_public, open_run
from imagen_ft.diffusion.denoiser import Denoiser
from launch.runtime.devices.mesh import with_shardings
from launch.runtime.state import TrainState, create_state


def check_start(config: ml_collections.ConfigDict) -> dict[str, str]:
    """Looks at what `config.init_from` names: digests for `claim_workdir`.

    Raises:
        InputError: it is missing, unfinished, damaged or another model's.
    """
    path = config.init_from
    if not path:
        return {}
    run = open_run(path)
    if run is None:
        check_public(config.stage.get("prediction", "eps"), path, "config.stage")
        return {"init_from": weights.digest(path, "unet")}
    check_same_model(run, config.stage, config)
    return {"init_from": run.digest()}


def make_create(
    config: ml_collections.ConfigDict,
    denoiser: Denoiser,
    text_shape: tuple[int, int],
    tx: optax.GradientTransformation,
    averages: Collection[str],
    mesh: Mesh,
) -> Callable[[], TrainState]:
    """What makes the state of step 0: from the run or the public weights of `init_from`, or new.

    Args:
        config: `init_from` ('' for new weights), `seed`.
        denoiser: the network.
        text_shape: of one prompt's states.
        tx: the optimiser.
        averages: names of the moving averages that are kept.
        mesh: where the state will live, from the start.
    """

    def create() -> TrainState:
        if not config.init_from:
            args = jax.random.key(config.seed), jnp.zeros(text_shape)
            return create_state(denoiser.init, args, tx, averages, mesh)
        variables = _load(config.init_from, denoiser, text_shape, mesh)
        return create_state(lambda variables: variables, (variables,), tx, averages, mesh)

    return create


def _load(path: str, denoiser: Denoiser, text_shape: tuple[int, int], mesh: Mesh) -> dict[str, Any]:
    run = open_run(path)
    if run is None:
        return load_public(path, denoiser, text_shape, "config.stage", mesh)
    abstract = with_shardings(mesh, denoiser.shapes(text_shape))
    return run.variables(abstract)
