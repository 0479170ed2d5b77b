"""A stage's auto-encoder, which no run stores: it comes from the files it was published in."""

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
# In place of a path: fixed random weights, for trying out programs.
NEW = "new"


def load_autoencoder(
    stage: ml_collections.ConfigDict,
    model: Autoencoder,
    run: str,
    field: str,
    mesh: Mesh | None = None,
    variant: str | None = None,
) -> tuple[Variables, str]:
    """The variables of an auto-encoder, and their checksum; raises InputError where it finds none.

    `stage.autoencoder.weights` names a pipeline or an auto-encoder on its own, with its `variant`
    ('new': random weights, for trials). Without it, the auto-encoder is that of the pipeline `run`
    names or, for a run of ours, started from; `variant` is then of those files.
    """
    # 1. Where the weights are.
    section = stage.autoencoder
    path = public_path(section.get("weights") or "")
    if path:
        variant = section.get("variant")
    else:
        path = public_path(_start_of(run))
    if not path:
        holds = f"{run} holds none" if run else "no other weights here have one"
        raise InputError(
            f"{field}.stage.autoencoder.weights must be an auto-encoder, got ''; {holds}"
        )
    # 2. Random ones.
    if path == NEW:
        return jax.jit(functools.partial(_new, model))(), NEW
    # 3. From files, whose config says what they are.
    loaded, params = weights.load_part(_PART, path, None, mesh, variant)
    check_same_network(model, loaded, path, f"{field}.stage.autoencoder")
    return {"params": params}, weights.digest(path, _PART, variant)


def _new(model: Autoencoder) -> Variables:
    side = model.factor
    image = jnp.zeros((1, side, side, model.out_channels))
    return dict(model.init(jax.random.key(0), image))


def _start_of(path: str) -> str:
    """The pipeline that a run started from, through any number of runs; or the path itself."""
    while path and (run := open_run(path)) is not None:
        path = run.config.get("init_from") or ""
    return path


def check_same_autoencoder(run: Any, digest: str) -> None:
    """Raises InputError if a run says that it was trained with another auto-encoder."""
    # Runs from before auto-encoders were recorded say nothing, and pass.
    if run.inputs.get("autoencoder", digest) != digest:
        raise InputError(
            f"{run.path} was trained on latents of another auto-encoder than the config's; set "
            "stage.autoencoder.weights to that one"
        )
