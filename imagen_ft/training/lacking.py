"""Defaults of the fields that say how a run is watched."""

import dataclasses
from typing import Any

import ml_collections

from imagen_ft.diffusion.from_config import lacking_in_stage, make_denoiser
from imagen_ft.diffusion.stage import Stage
from imagen_ft.evaluation.lacking import lacking_in_measuring
from launch.runtime.optional_fields import Defaults, below, unset, within


def lacking_in_pictures(config: ml_collections.ConfigDict) -> Defaults:
    """Fields of `config.pictures` that a config does not set."""
    pictures = config.get("pictures") or {}
    return {
        **below("pictures", pictures, {"count": unset(int)}),
        **lacking_in_sampling("pictures", pictures, config.stage),
    }


def lacking_in_sampling(path: str, sampling: Any, stage: ml_collections.ConfigDict) -> Defaults:
    """Fields of `make_stage` that the part `sampling` of a config, at `path`, does not set."""
    if sampling:
        return lacking_in_stage(path, sampling, make_denoiser(stage))
    # Without the part its sampler is unknown: all fields that the command line might set.
    sampler: Defaults = {"name": unset(str), "num_steps": unset(int), "eta": unset(float)}
    sampler |= {"logvar_coeff": unset(float), "spacing": unset(str)}
    defaults = {field.name: field.default for field in dataclasses.fields(Stage)}
    del defaults["guide"]  # a run that is sampled in training has none
    own = {name: x for name, x in defaults.items() if x is not dataclasses.MISSING}
    own |= {"guidance_weight": unset(float), "threshold_percentile": unset(float)}
    own |= {"noise_augmentation": 0.0}
    return {**within(path, own), **within(f"{path}.sampler", sampler)}


def lacking_in_metric(config: ml_collections.ConfigDict) -> Defaults:
    """Fields of `config.evaluation_metric` that a config does not set."""
    fields = config.get("evaluation_metric") or {}
    own: Defaults = {"every": 0, "allow_few_images": False, "measure": unset(str)}
    own |= {"num_images": unset(int), "batch_size": unset(int)}
    sampling = lacking_in_sampling("sampling", fields.get("sampling") or {}, config.stage)
    lacked = {**below("", fields, own), **sampling, **lacking_in_measuring(fields)}
    return within("evaluation_metric", lacked)
