"""The config of a cascade, from whatever names it: a file, a config, runs, weights of the Hub."""

import os
import re
from collections.abc import Sequence
from typing import Any, TypeAlias

import ml_collections

from imagen_ft import weights
from imagen_ft.cascade import values
from imagen_ft.cascade.latent_weights import (
    fields_of,
    has_zeros_for_no_text,
    sampler_of,
    stage_of,
)
from imagen_ft.cascade.stage_weights import PUBLIC, open_run, public_path
from imagen_ft.models.latent_unet import LatentUNet
from imagen_ft.text.cache import TextCache
from imagen_ft.text.captions import CLEANED, PLAIN
from launch.errors import InputError
from launch.runtime.checkpoints import hub
from launch.runtime.config import load_config
from launch.runtime.run import Run

Opened: TypeAlias = (
    str | os.PathLike[str] | ml_collections.ConfigDict | Sequence[str | os.PathLike[str]]
)
# Sampling and text encoder of public weights: as in these experiments.
_PUBLIC_CONFIG = "configs/deepfloyd/sample.py:hub"
_LATENT_CONFIG = "configs/stable_diffusion/sample.py:hub"
# For a run whose config draws no pictures.
_SAMPLING: dict[str, Any] = dict(
    sampler=dict(name="ddpm", num_steps=100, logvar_coeff=0.0, eta=0.0),
    guidance_weight=1.0,
    threshold_percentile=100.0,
)
_BATCH_SIZE = 16


def as_config(source: Opened) -> ml_collections.ConfigDict:
    """The config of a cascade; see `Cascade.load` for what may name it. Raises InputError."""
    paths = values.SOURCE.of("config", source)
    if isinstance(paths, ml_collections.ConfigDict):
        return paths
    # 1. A config file, with its arguments after a colon.
    names = [os.path.expanduser(path) for path in paths]
    if len(names) == 1 and re.search(r"\.py(:|$)", names[0]):
        return load_config(names[0])
    if not names:
        raise InputError("config must be a config, a file, a run or weights, got none")
    # 2. Runs or public weights, one per stage.
    runs = [None if _is_public(name) else open_run(name) for name in names]
    trained = [run for run in runs if run is not None]
    # A run knows its text and classes, public weights do not.
    if trained and len(trained) < len(runs):
        raise InputError(f"{', '.join(names)}: runs and other weights together need a config")
    return _of_runs(trained) if trained else _of_weights(names)


def with_t5(config: ml_collections.ConfigDict, path: str) -> ml_collections.ConfigDict:
    """A config whose prompts are embedded by T5 itself, loaded when the first one comes.

    `path` holds weights with T5: a folder, an import or a Hub repository.
    """
    before = config.text
    # A cascade with an encoder of its own was never trained on T5's states.
    if not {"cache", "weights"} & set(before):
        raise InputError(f"text={path}: this cascade has its own text encoder; leave text out")
    kept = ("null", "template", "shape", "dtype", "clean_caption", "max_length")
    fields = {name: before[name] for name in kept if name in before}
    # New prompts must be embedded as the cached ones were, which the cache itself says.
    if "cache" in before:
        cache = TextCache(before.cache)
        cleaned = cache.encoder.get("preprocessing", PLAIN) == CLEANED
        fields |= dict(dtype=str(cache.dtype), max_length=cache.shape[0], clean_caption=cleaned)
    config = ml_collections.ConfigDict(config.to_dict())
    config.text = dict(fields, weights=os.path.expanduser(public_path(path)))
    return config


def _is_public(name: str) -> bool:
    """Whether it names a Hub repository, and no folder here."""
    return name.startswith(PUBLIC) or hub.is_repository(name)


def _of_runs(runs: Sequence[Run]) -> ml_collections.ConfigDict:
    """One stage per run, sampled like the pictures of its training."""
    first = runs[0].config
    config = ml_collections.ConfigDict()
    config.seed, config.batch_size = 0, _BATCH_SIZE
    config.class_names, config.text = first.class_names, first.text
    stages = {}
    for run in runs:
        name = run.path.name
        if name in stages:
            raise InputError(f"{run.path}: two runs have the name {name}; rename a folder")
        pictures = run.config.get("pictures") or {}
        fields = {key: value for key, value in pictures.items() if key != "count"}
        entry = {**_SAMPLING, "noise_augmentation": 0.0, **fields}
        stages[name] = dict(entry, run=str(run.path), stage=run.config.stage)
    config.stages = stages
    return config


def _of_weights(names: Sequence[str]) -> ml_collections.ConfigDict:
    """One stage per name, with sampling and text as in the experiment with such weights."""
    config = load_config(_PUBLIC_CONFIG)
    stages = {}
    for name in names:
        path = public_path(name)
        variant = config.stages.base64.variant if _is_public(name) else None
        # 1. Stable Diffusion stands alone.
        model, _ = weights.open_model("unet", path, variant)
        if isinstance(model, LatentUNet):
            if len(names) > 1:
                raise InputError(f"{path}: Stable Diffusion is a cascade by itself; name it alone")
            return _of_latents(path, model, variant)
        # 2. IF: its super-resolution network is the one with a noise level as input.
        model, _ = weights.open_unet(path, variant)
        key = "sr256" if model.noise_level else "base64"
        if key in stages:
            raise InputError(f"{path}: two stages have the same size; choose one of them")
        entry = config.stages[key]
        entry.run, entry.stage.unet = PUBLIC[0] + path, {**fields_of(model), "dtype": "auto"}
        with entry.ignore_type():
            entry.variant = variant
        stages[key] = entry
    config.stages = stages
    # 3. Text: T5 comes with any stage's weights.
    with config.ignore_type():
        config.text.weights = public_path(names[0])
        config.text.variant = stages[min(stages)].variant
    del config.text.shape  # The weights know it.
    return config


def _of_latents(path: str, model: LatentUNet, variant: str | None) -> ml_collections.ConfigDict:
    """Stable Diffusion, as its files and the experiment with such weights describe it."""
    name = "sdxl" if model.size_embedding_dim else "sd15"
    config = load_config(f"{_LATENT_CONFIG},model={name}")
    entry = config.stages.sd
    with config.ignore_type():
        entry.run, entry.variant = PUBLIC[1] + path, variant
        entry.stage = stage_of(path, model, variant)
        entry.sampler = {**sampler_of(path), "num_steps": entry.sampler.num_steps}
        config.text.weights, config.text.variant = path, variant
        if model.size_embedding_dim and not has_zeros_for_no_text(path):
            config.text.null = "empty"
    del config.text.shape  # The weights know it.
    return config
