"""What training starts from where there is nothing to resume: other weights, or new ones."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from imagen_ft import weights
from imagen_ft.cascade.autoencoder import load_autoencoder
from imagen_ft.cascade.latent_weights import check_settings
from imagen_ft.cascade.loading import check_same_model
from imagen_ft.cascade.stage_weights import (
    check_public,
    digest_of,
    load_public,
    public_path,
    variables_of,
)
from imagen_ft.text.encoders import TextEncoder
from imagen_ft.training.teachers import begin_as, check_teacher, load_teacher
from imagen_ft.training.training import Params, Training
from launch.runtime.state import TrainState, create_state, state_of
from launch.runtime.types import Variables


def check_start(training: Training, encoder: TextEncoder | None = None) -> dict[str, str]:
    """Checks what `config.init_from` or `config.distill` names; gives checksums to `claim_workdir`.

    A teacher must have been trained with `encoder`.

    Raises:
        InputError: it is missing, unfinished, damaged or another model's.
    """
    config = training.config
    # 1. A teacher.
    if training.teaching:
        return check_teacher(training.teaching, config, encoder)
    if not config.init_from:
        return {}
    # 2. Public weights: their own conventions must be the config's.
    if training.start is None:
        path = public_path(config.init_from)
        if training.denoiser.autoencoder is None:
            check_public(config.stage.get("prediction", "eps"), config.init_from, "config.stage")
        else:
            check_settings("config.stage", config.stage, path)
        return {"init_from": weights.digest(path, "unet")}
    # 3. A run.
    check_same_model(training.start, config.stage, config)
    return {"init_from": digest_of(training.start)}


def create(training: Training, mesh: Mesh, base: Params = None) -> TrainState:
    """The state of step 0: a copy of the teacher, adapters, other weights, or new ones."""
    tx, averages = training.tx, training.decays
    # 1. A student starts as its teacher.
    if training.teaching:
        assert base is not None, "a student needs its teacher's variables"
        student = training.abstract.variables
        return state_of(begin_as(base, student, mesh), tx, averages, mesh)
    # 2. New adapters, which change nothing yet.
    if training.lora:
        shapes = training.denoiser.shapes(training.text_shape)["params"]
        new = lambda key: {"params": training.lora.init(key, shapes)}  # noqa: E731
        return create_state(new, (jax.random.key(training.config.seed),), tx, averages, mesh)
    # 3. The weights of a run, or public ones.
    if training.config.init_from:
        return state_of(_load(training, mesh), tx, averages, mesh)
    # 4. New weights. All four are created sharded: no device ever holds the whole state.
    args = jax.random.key(training.config.seed), jnp.zeros(training.text_shape)
    return create_state(training.denoiser.init, args, tx, averages, mesh)


def load_base(training: Training, mesh: Mesh) -> Params:
    """What adapters are trained on, or a teacher's variables; None without both."""
    if training.teaching:
        return load_teacher(training.teaching, training.text_shape, mesh)
    if training.lora is None:
        return None
    # Rounded here once; sampling rounds them in the same way before it merges.
    dtype = jnp.dtype(training.lora.base_dtype)
    params = _load(training, mesh, dtype)["params"]
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def load_latents(training: Training, mesh: Mesh) -> tuple[Variables | None, dict[str, str]]:
    """The auto-encoder's variables, and their checksum for `claim_workdir`; or None and {}."""
    config, model = training.config, training.denoiser.autoencoder
    if model is None:
        return None, {}
    variables, digest = load_autoencoder(config.stage, model, config.init_from, "config", mesh)
    return variables, {"autoencoder": digest}


def _load(training: Training, mesh: Mesh, dtype: Any = None) -> Variables:
    denoiser, text_shape = training.denoiser, training.text_shape
    if training.start is None:
        path = training.config.init_from
        return load_public(path, denoiser, text_shape, "config.stage", mesh, dtype=dtype)
    return variables_of(training.start, denoiser, text_shape, mesh)
