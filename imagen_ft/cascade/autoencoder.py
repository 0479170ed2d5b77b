"""The weights of a stage's auto-encoder, which belong to no run: of the files that it came with."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from imagen_ft import weights
from imagen_ft.cascade.stage_weights import check_same_network, open_run, public_path
from imagen_ft.models.autoencoder import Autoencoder
from launch.errors import InputError
from launch.runtime.types import Variables

_PART = "vae"
# In the place of weights: some of chance, always the same, for trials of the program alone.
NEW = "new"


def load_autoencoder(
    stage: ml_collections.ConfigDict,
    model: Autoencoder,
    run: str,
    field: str,
    mesh: Mesh | None = None,
    variant: str | None = None,
) -> tuple[Variables, str]:
    """The variables of an auto-encoder, and their digest.

    Args:
        stage: the config of a denoiser; `autoencoder.weights` names a pipeline or an auto-encoder
            of its own, and `autoencoder.variant` the variant of its files; 'new' is weights of
            chance, for trials.
        model: the auto-encoder of that config.
        run: of the stage: without `weights` the auto-encoder is the one of this pipeline, or of
            the one that this run began with.
        field: of the stage, for messages.
        mesh: where they are to be; None is one device.
        variant: of the files of `run`.

    Raises:
        InputError: there are no weights, or they are of another auto-encoder.
    """
    section = stage.autoencoder
    path = public_path(section.get("weights") or "")
    if path:
        variant = section.get("variant")
    else:
        path = public_path(_start_of(run))
    if not path:
        holds = f"{run} holds none" if run else "there are no other weights that have one"
        raise InputError(
            f"{field}.stage.autoencoder.weights must name an auto-encoder, got ''; {holds}"
        )
    if path == NEW:
        return jax.jit(functools.partial(_new, model))(), NEW
    loaded, params = weights.load_part(_PART, path, None, mesh, variant)
    check_same_network(model, loaded, path, f"{field}.stage.autoencoder")
    return {"params": params}, weights.digest(path, _PART, variant)


def _new(model: Autoencoder) -> Variables:
    side = model.factor
    image = jnp.zeros((1, side, side, model.out_channels))
    return dict(model.init(jax.random.key(0), image))


def _start_of(path: str) -> str:
    """The pipeline that a run began with, or the path itself where it is no run."""
    while path and (run := open_run(path)) is not None:
        path = run.config.get("init_from") or ""
    return path


def check_same_autoencoder(run: Any, digest: str) -> None:
    """Compares the auto-encoder that a run was trained with, where it says so, with ours.

    Args:
        run: of imagen_ft.finetune.
        digest: of ours.

    Raises:
        InputError: they differ.
    """
    if run.inputs.get("autoencoder", digest) != digest:
        raise InputError(
            f"{run.path} was trained on the latents of another auto-encoder than the "
            "config has; name that one as stage.autoencoder.weights"
        )
