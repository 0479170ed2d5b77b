"""What training begins with, where there is nothing to resume: other weights, or new ones."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from imagen_ft import weights
from imagen_ft.cascade.loading import check_public, check_same_model, load_public
from imagen_ft.training.training import Training
from launch.runtime.devices.mesh import with_shardings
from launch.runtime.state import TrainState, create_state, state_of
from launch.runtime.types import Variables


def check_start(training: Training) -> dict[str, str]:
    """Looks at what `config.init_from` names: digests for `claim_workdir`.

    Raises:
        InputError: it is missing, unfinished, damaged or another model's.
    """
    config = training.config
    if not config.init_from:
        return {}
    if training.start is None:
        check_public(config.stage.get("prediction", "eps"), config.init_from, "config.stage")
        return {"init_from": weights.digest(config.init_from, "unet")}
    check_same_model(training.start, config.stage, config)
    return {"init_from": training.start.digest()}


def create(training: Training, mesh: Mesh) -> TrainState:
    """The state of step 0: from the run or the public weights of `config.init_from`, or new.

    Args:
        training: what is trained; its config has `init_from` ('' for new weights) and `seed`.
        mesh: where the state will live, from the start.

    Raises:
        InputError: the weights do not fit the model.
    """
    tx, averages = training.tx, training.decays
    if training.config.init_from:
        return state_of(_load(training, mesh), tx, averages, mesh)
    args = jax.random.key(training.config.seed), jnp.zeros(training.text_shape)
    return create_state(training.denoiser.init, args, tx, averages, mesh)


def _load(training: Training, mesh: Mesh) -> Variables:
    denoiser, text_shape = training.denoiser, training.text_shape
    if training.start is None:
        path = training.config.init_from
        return load_public(path, denoiser, text_shape, "config.stage", mesh)
    return training.start.variables(with_shardings(mesh, denoiser.shapes(text_shape)))
