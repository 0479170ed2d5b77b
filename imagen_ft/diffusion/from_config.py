"""Builds denoisers and stages from configs."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import ml_collections

from imagen_ft.diffusion.autoencoder_from_config import (
    check_latents,
    lacking_in_autoencoder,
    make_autoencoder,
)
from imagen_ft.diffusion.denoiser import UPSAMPLING, Denoiser, Network
from imagen_ft.diffusion.forward_process import PREDICTIONS
from imagen_ft.diffusion.guidance import WEIGHT_SCHEDULES
from imagen_ft.diffusion.sampler_from_config import make_sampler
from imagen_ft.diffusion.schedule import ScaledLinear, make_schedule
from imagen_ft.diffusion.stage import Stage
from imagen_ft.models import presets
from imagen_ft.models.latent_unet import LatentUNet
from imagen_ft.models.unet import UNet
from launch.errors import InputError
from launch.runtime.config import module_fields
from launch.runtime.limits import SIDE, check_numbers, make_module
from launch.runtime.optional_fields import Defaults, Mixed, below, defaults_of

# What a stage and its guide must have in common.
_OF_IMAGES = (
    "size",
    "low_size",
    "channels",
    "schedule",
    "upsampling",
    "prediction",
    "autoencoder",
    "pooled_width",
)
_LIMITS = {
    "size": SIDE,
    "low_size": (0, SIDE[1]),
    "channels": SIDE,
    "pooled_width": (0, SIDE[1]),
}


@runtime_checkable
class _Levels(Network, Protocol):
    """A network seen as levels, as configs describe it; see `CONTRIBUTING.md`, A network."""

    block_out_channels: Sequence[int]  # width of each level, from the finest

    @property
    def self_attention(self) -> Sequence[bool]:
        """For each level, whether it attends to itself."""

    @property
    def halvings(self) -> int:
        """How often height and width are halved on the way down."""

    def heads(self, level: int) -> int:
        """The most heads of a level's attention, for `cascade.memory`."""


def make_denoiser(config: ml_collections.ConfigDict) -> Denoiser:
    """Builds a denoiser from `config.stage` or a part like it; raises InputError.

    Fields: `size`, `low_size`, `channels`; `schedule`, see `make_schedule`; `unet` with fields of
    `UNet`, or `preset`, a name of `models.presets`, and the fields that differ; and
    `learned_variance`, `prediction` and `upsampling` where they are not `Denoiser`'s defaults. For
    latents also `autoencoder`, see `make_autoencoder` (`unet` then has fields of `LatentUNet`, and
    `size` and `channels` are the latents'), and for SDXL `pooled_width` and `sizes`.
    """
    # 1. Sizes.
    check_numbers(config, _LIMITS, "stage")
    if config.low_size and config.size % config.low_size:
        raise InputError(
            f"size must be a multiple of low_size={config.low_size}, got {config.size}"
        )
    # 2. Conventions.
    upsampling = config.get("upsampling", "bilinear")
    if upsampling not in UPSAMPLING:
        raise InputError(f"upsampling must be one of {', '.join(UPSAMPLING)}, got {upsampling!r}")
    prediction = config.get("prediction", "eps")
    if prediction not in PREDICTIONS:
        raise InputError(f"prediction must be one of {', '.join(PREDICTIONS)}, got {prediction!r}")
    learned_variance = config.get("learned_variance", False)
    schedule = make_schedule(config.schedule)
    if isinstance(schedule, ScaledLinear) and schedule.zero_terminal_snr and prediction == "eps":
        raise InputError(
            "prediction must be 'v' or 'x0' with schedule.zero_terminal_snr, got 'eps': the last "
            "step is pure noise, where eps says nothing about the image; set one of them"
        )
    # 3. The network; a learned variance doubles its outputs.
    denoiser = Denoiser(
        model=_make_network(config, config.channels * (2 if learned_variance else 1)),
        schedule=schedule,
        size=config.size,
        low_size=config.low_size,
        channels=config.channels,
        upsampling=upsampling,
        learned_variance=learned_variance,
        prediction=prediction,
        autoencoder=make_autoencoder(config),
        pooled_width=config.get("pooled_width", 0),
        sizes=tuple(config.get("sizes", ())),
    )
    check_latents(denoiser)
    return denoiser


def _make_network(config: ml_collections.ConfigDict, out_channels: int) -> Network:
    fields = module_fields(config.unet, "stage.unet")
    # 1. The class: a preset's, or by what the stage draws.
    preset = fields.pop("preset", "")
    kind = presets.find(preset).module if preset else UNet
    if not preset and config.get("autoencoder"):
        kind = LatentUNet
    # 2. Fields that follow from the stage.
    own: dict[str, Any] = dict(out_channels=out_channels)
    if kind is not LatentUNet:
        own["noise_level"] = config.low_size > 0
    if preset:
        model = presets.make(preset, "stage.unet", **fields | own)
    else:
        model = make_module(kind, fields | own, "stage.unet")
    if not isinstance(model, _Levels):
        raise InputError(f"unet.preset must be that of a denoising network, got {preset!r}")
    # 3. Levels that fit the size.
    levels = len(model.block_out_channels)
    if len(model.self_attention) != levels:
        raise InputError(
            f"unet.attention must have one value per level, {levels} as in block_out_channels, got "
            f"{len(model.self_attention)}; give both the same number"
        )
    halvings = model.halvings
    if config.size % 2**halvings:
        raise InputError(f"size must be halved {halvings} times, once per level, got {config.size}")
    return model


def make_stage(config: ml_collections.ConfigDict, denoiser: Denoiser) -> Stage:
    """Builds a stage from the fields of `Stage`; those with defaults may be missing."""
    # 1. Guidance and the condition's noise.
    guidance, level = _guidance(config), config.get("noise_augmentation", 0.0)
    if not 0.0 <= level <= 1.0:
        raise InputError(f"noise_augmentation must be in [0, 1], got {level}")
    # 2. Thresholds and sizes.
    percentile, maximum = _thresholds(config, denoiser)
    batch_size, stored_size = config.get("batch_size", 0), config.get("stored_size", 0)
    if not 0 <= stored_size <= denoiser.image_size:
        raise InputError(
            f"stored_size must be from 1 to the {denoiser.image_size} px that the stage draws, or "
            f"0 for that size, got {stored_size}; images can only be made smaller"
        )
    if batch_size < 0:
        raise InputError(
            f"batch_size must be a number of images, or 0 for the cascade's, got {batch_size}"
        )
    # 3. The sampler.
    sampler = make_sampler(config.sampler)
    # Only to raise: whether the schedule has such steps depends on both.
    sampler.times(denoiser.schedule)
    if sampler.needs_learned_variance and not denoiser.learned_variance:
        raise InputError(
            f"sampler.name={config.sampler.name!r} with these fields needs a learned variance; set "
            "stage.learned_variance, or choose another sampler"
        )
    return Stage(
        denoiser=denoiser,
        sampler=sampler,
        threshold_percentile=percentile,
        threshold_maximum=maximum,
        noise_augmentation=level,
        batch_size=batch_size,
        stored_size=stored_size,
        **guidance,
    )


def _thresholds(config: ml_collections.ConfigDict, denoiser: Denoiser) -> tuple[float, float]:
    maximum = config.get("threshold_maximum", float("inf"))
    if denoiser.autoencoder is not None:
        # Latents have no range to clip to, so fields that would do nothing are refused.
        percentile = config.get("threshold_percentile", 100.0)
        for name, value, none in (
            ("threshold_percentile", percentile, 100.0),
            ("threshold_maximum", maximum, float("inf")),
        ):
            if value != none:
                raise InputError(
                    f"{name} must be left out for a stage that draws latents, got {value}: latents "
                    "have no fixed range; use guidance_rescale against too much contrast"
                )
        return percentile, maximum
    percentile = config.threshold_percentile
    if not 0.0 < percentile <= 100.0:
        raise InputError(
            "threshold_percentile must be above 0 and at most 100 (which only clips), got "
            f"{percentile}"
        )
    if not maximum >= 1.0:
        raise InputError(f"threshold_maximum must be at least 1, got {maximum}")
    return percentile, maximum


def _guidance(config: ml_collections.ConfigDict) -> dict[str, Any]:
    # 1. What leads away from other images: guidance.
    weight, scale = config.guidance_weight, config.get("cads_scale", 0.0)
    schedule = config.get("guidance_schedule", "constant")
    if not 0.0 <= weight < float("inf"):
        raise InputError(
            f"guidance_weight must be finite and at least 0, got {weight}; 1 turns guidance off"
        )
    if schedule not in WEIGHT_SCHEDULES:
        names = ", ".join(WEIGHT_SCHEDULES)
        raise InputError(f"guidance_schedule must be one of {names}, got {schedule!r}")
    if not 0.0 <= scale < float("inf"):
        raise InputError(f"cads_scale must be finite and at least 0, got {scale}; 0 turns it off")
    fields: dict[str, Any] = dict(guidance_weight=weight, guidance_schedule=schedule)
    fields["cads_scale"] = scale
    # 2. Shares, which may be left out.
    for name, share in (("guidance_rescale", 0.0), ("cads_mix", 1.0)):
        fields[name] = config.get(name, share)
        if not 0.0 <= fields[name] <= 1.0:
            raise InputError(
                f"{name} must be a fraction in [0, 1], got {fields[name]}; 0 turns it off"
            )
    # 3. Intervals of time; 1 is noise.
    for name, ends in (("guidance_interval", (0.0, 1.0)), ("cads_interval", (0.6, 0.9))):
        interval = tuple(config.get(name, ends))
        fields[name] = interval
        if len(interval) != 2 or not 0.0 <= interval[0] < interval[1] <= 1.0:
            raise InputError(f"{name} must be two increasing numbers in [0, 1], got {interval}")
    return fields


def make_alone(config: ml_collections.ConfigDict, denoiser: Denoiser) -> Stage:
    """`make_stage` where the denoiser's weights are the only ones, as in training: no guide."""
    if config.get("guide"):
        raise InputError(
            "guide must be left out for a stage that is sampled during its own training, got "
            f"{config.guide.to_dict()}; set it when sampling the finished run"
        )
    return make_stage(config, denoiser)


def make_guided(entry: ml_collections.ConfigDict, field: str) -> Stage:
    """A stage of a cascade, with its denoiser and, where `entry.guide` says so, a guide.

    The entry has fields of `make_stage`, `stage` for `make_denoiser`, and `guide`, with a `stage`
    of its own where that differs.
    """
    denoiser = make_denoiser(entry.stage)
    stage = make_stage(entry, denoiser)
    if not entry.get("guide"):
        return stage
    guide = make_denoiser(entry.guide.get("stage", entry.stage))
    # Both outputs are added up, so they must be of the same kind of images.
    for name in _OF_IMAGES:
        mine, other = getattr(denoiser, name), getattr(guide, name)
        if mine != other:
            raise InputError(
                f"{field}.guide.stage.{name} must be that of the stage, {mine}, got {other}; "
                "choose another run"
            )
    return dataclasses.replace(stage, guide=guide)


def lacking_in_denoiser(path: str, config: ml_collections.ConfigDict) -> Defaults:
    """Fields of `make_denoiser` that a config, which is at `path`, does not set."""
    denoiser = make_denoiser(config)
    # These follow from the images and are not options.
    network = defaults_of(denoiser.model, leave_out=("out_channels", "noise_level"))
    return {
        **below(path, config, defaults_of(denoiser)),
        **below(f"{path}.unet", config.unet, network),
        **lacking_in_autoencoder(path, config, denoiser.autoencoder),
    }


def lacking_in_stage(path: str, config: ml_collections.ConfigDict, denoiser: Denoiser) -> Defaults:
    """Fields of `make_stage` that a config, which is at `path`, does not set."""
    stage = make_stage(config, denoiser)
    sampler = defaults_of(stage.sampler)
    if "logvar_coeff" in sampler:
        sampler["logvar_coeff"] = Mixed(0.0, (float, str))  # or 'learned'
    return {
        **below(path, config, defaults_of(stage)),
        **below(f"{path}.sampler", config.sampler, sampler),
    }


def make_stages(config: ml_collections.ConfigDict, base: bool = True) -> dict[str, Stage]:
    """The stages of `config.stages`, ordered by size; with `base` the first starts from noise."""
    stages = {
        name: make_guided(entry, f"config.stages.{name}") for name, entry in config.stages.items()
    }
    if not stages:
        raise InputError("config.stages is empty; add at least one run of imagen_ft.finetune")
    ordered = dict(sorted(stages.items(), key=lambda item: item[1].image_size))
    # Each stage must enlarge what the one before it makes; a base enlarges 0 px.
    size = 0 if base else next(iter(ordered.values())).denoiser.low_size
    for name, stage in ordered.items():
        if stage.denoiser.low_size != size:
            if not size:
                raise InputError(
                    f"config.stages.{name} starts from {stage.denoiser.low_size} px, which no "
                    "stage makes; add the run of a stage that does"
                )
            raise InputError(
                f"config.stages.{name} must start from the {size} px of the stage before "
                f"it, got {stage.denoiser.low_size}"
            )
        size = stage.image_size
    return ordered
