"""Denoisers and stages from configs."""

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

# What a stage and its guide have to have in common.
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
    """A network by its levels, as configs describe one; see `CONTRIBUTING.md`, A network.

    Attributes:
        block_out_channels: width of each level, from the finest.
    """

    block_out_channels: Sequence[int]

    @property
    def self_attention(self) -> Sequence[bool]:
        """For each level, whether it attends to itself."""

    @property
    def halvings(self) -> int:
        """How many times height and width are halved on the way down."""

    def heads(self, level: int) -> int:
        """The most heads of an attention of a level; `cascade.memory` asks for them."""


def make_denoiser(config: ml_collections.ConfigDict) -> Denoiser:
    """Builds a denoiser.

    Args:
        config: `size`, `low_size`, `channels`; `schedule`, see `make_schedule`; `unet`: fields of
            `UNet`, or `preset`, a name of `models.presets`, and the fields that differ from it;
            `learned_variance`, `prediction` and `upsampling` where they are not those of
            `Denoiser`. Of latents also `autoencoder`, see `make_autoencoder` (`unet` are then
            fields of `LatentUNet`), and for SDXL `pooled_width` and `sizes`; `size` and `channels`
            are the latents'.

    Raises:
        InputError: unknown schedule, preset, prediction or upsampling, or sizes, levels and parts
            that do not fit together.
    """
    check_numbers(config, _LIMITS, "stage")
    if config.low_size and config.size % config.low_size:
        raise InputError(
            f"size must be a multiple of low_size={config.low_size}, got {config.size}"
        )
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
            "step is noise alone, from which eps tells nothing; set one of them"
        )
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
    preset = fields.pop("preset", "")
    kind = presets.find(preset).module if preset else UNet
    if not preset and config.get("autoencoder"):
        kind = LatentUNet
    own: dict[str, Any] = dict(out_channels=out_channels)
    if kind is not LatentUNet:
        own["noise_level"] = config.low_size > 0
    if preset:
        model = presets.make(preset, "stage.unet", **fields | own)
    else:
        model = make_module(kind, fields | own, "stage.unet")
    if not isinstance(model, _Levels):
        raise InputError(f"unet.preset must be that of a denoising network, got {preset!r}")
    levels = len(model.block_out_channels)
    if len(model.self_attention) != levels:
        raise InputError(
            f"unet.attention must have a value a level, {levels} as block_out_channels, got "
            f"{len(model.self_attention)}; give both as many"
        )
    halvings = model.halvings
    if config.size % 2**halvings:
        raise InputError(f"size must be halved {halvings} times, once a level, got {config.size}")
    return model


def make_stage(config: ml_collections.ConfigDict, denoiser: Denoiser) -> Stage:
    """Builds a stage from the fields of `Stage`; those with defaults may be missing.

    Raises:
        InputError: an unknown sampler, spacing or schedule of guidance, steps that the noise
            schedule does not have, a level or share outside [0, 1], a negative weight.
    """
    guidance, level = _guidance(config), config.get("noise_augmentation", 0.0)
    if not 0.0 <= level <= 1.0:
        raise InputError(f"noise_augmentation must be in [0, 1], got {level}")
    percentile, maximum = _thresholds(config, denoiser)
    batch_size, stored_size = config.get("batch_size", 0), config.get("stored_size", 0)
    if not 0 <= stored_size <= denoiser.image_size:
        raise InputError(
            f"stored_size must be from 1 to the {denoiser.image_size} px that the stage draws, or "
            f"0 for as many, got {stored_size}; images are only made smaller"
        )
    if batch_size < 0:
        raise InputError(
            f"batch_size must be images at a time, or 0 for the cascade's, got {batch_size}"
        )
    sampler = make_sampler(config.sampler)
    sampler.times(denoiser.schedule)
    if sampler.needs_learned_variance and not denoiser.learned_variance:
        raise InputError(
            f"sampler.name={config.sampler.name!r} with these fields needs the network's "
            "variance, but the stage has no learned_variance; set it, or choose another "
            "sampler"
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
    """Percentile and maximum; see `guidance.threshold`."""
    maximum = config.get("threshold_maximum", float("inf"))
    if denoiser.autoencoder is not None:
        percentile = config.get("threshold_percentile", 100.0)
        for name, value, none in (
            ("threshold_percentile", percentile, 100.0),
            ("threshold_maximum", maximum, float("inf")),
        ):
            if value != none:
                raise InputError(
                    f"{name} must be left out where a stage draws latents, got {value}: they have "
                    "no range to be kept in; guidance_rescale takes back contrast"
                )
        return percentile, maximum
    percentile = config.threshold_percentile
    if not 0.0 < percentile <= 100.0:
        raise InputError(
            f"threshold_percentile must be above 0 and at most 100, which clips, got {percentile}"
        )
    if not maximum >= 1.0:
        raise InputError(f"threshold_maximum must be at least 1, got {maximum}")
    return percentile, maximum


def _guidance(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The fields of `Stage` that lead away from other images, or from one and the same."""
    weight, scale = config.guidance_weight, config.get("cads_scale", 0.0)
    schedule = config.get("guidance_schedule", "constant")
    if not 0.0 <= weight < float("inf"):
        raise InputError(f"guidance_weight must be finite and at least 0, got {weight}; 1 is none")
    if schedule not in WEIGHT_SCHEDULES:
        names = ", ".join(WEIGHT_SCHEDULES)
        raise InputError(f"guidance_schedule must be one of {names}, got {schedule!r}; name one")
    if not 0.0 <= scale < float("inf"):
        raise InputError(f"cads_scale must be at least 0, got {scale}; 0 is none")
    fields: dict[str, Any] = dict(guidance_weight=weight, guidance_schedule=schedule)
    fields["cads_scale"] = scale
    for name, share in (("guidance_rescale", 0.0), ("cads_mix", 1.0)):
        fields[name] = config.get(name, share)
        if not 0.0 <= fields[name] <= 1.0:
            raise InputError(f"{name} must be a share in [0, 1], got {fields[name]}; 0 is none")
    for name, ends in (("guidance_interval", (0.0, 1.0)), ("cads_interval", (0.6, 0.9))):
        interval = tuple(config.get(name, ends))
        fields[name] = interval
        if len(interval) != 2 or not 0.0 <= interval[0] < interval[1] <= 1.0:
            raise InputError(f"{name} must be from and to, in [0, 1], got {interval}")
    return fields


def make_alone(config: ml_collections.ConfigDict, denoiser: Denoiser) -> Stage:
    """As `make_stage`, where there are no weights but the denoiser's own.

    Raises:
        InputError: see `make_stage`; or the config names a guide.
    """
    if config.get("guide"):
        raise InputError(
            f"guide must be left out where a stage is drawn as it trains, got "
            f"{config.guide.to_dict()}; name it where the run is sampled"
        )
    return make_stage(config, denoiser)


def make_guided(entry: ml_collections.ConfigDict, field: str) -> Stage:
    """A stage of a cascade, with its denoiser and the one that guides it.

    Args:
        entry: fields of `make_stage`; `stage`, of `make_denoiser`; and `guide`, where the stage is
            led by a weaker network: its own `stage` where that is another one.
        field: of the entry, for messages.

    Raises:
        InputError: see `make_stage`; or the guide's images or outputs are not the stage's.
    """
    denoiser = make_denoiser(entry.stage)
    stage = make_stage(entry, denoiser)
    if not entry.get("guide"):
        return stage
    guide = make_denoiser(entry.guide.get("stage", entry.stage))
    for name in _OF_IMAGES:
        mine, other = getattr(denoiser, name), getattr(guide, name)
        if mine != other:
            raise InputError(
                f"{field}.guide.stage.{name} must be that of the stage, {mine}, got {other}; name "
                "another run"
            )
    return dataclasses.replace(stage, guide=guide)


def lacking_in_denoiser(path: str, config: ml_collections.ConfigDict) -> Defaults:
    """Fields of `make_denoiser` that a config lacks, which is at `path`."""
    denoiser = make_denoiser(config)
    # Those that the image decides about are no options.
    network = defaults_of(denoiser.model, leave_out=("out_channels", "noise_level"))
    return {
        **below(path, config, defaults_of(denoiser)),
        **below(f"{path}.unet", config.unet, network),
        **lacking_in_autoencoder(path, config, denoiser.autoencoder),
    }


def lacking_in_stage(path: str, config: ml_collections.ConfigDict, denoiser: Denoiser) -> Defaults:
    """Fields of `make_stage` that a config lacks, which is at `path`."""
    stage = make_stage(config, denoiser)
    sampler = defaults_of(stage.sampler)
    if "logvar_coeff" in sampler:
        sampler["logvar_coeff"] = Mixed(0.0, (float, str))  # or 'learned'
    return {
        **below(path, config, defaults_of(stage)),
        **below(f"{path}.sampler", config.sampler, sampler),
    }


def make_stages(config: ml_collections.ConfigDict, base: bool = True) -> dict[str, Stage]:
    """The stages of `config.stages` by name, in order of size; no weights are loaded.

    Args:
        config: of the task.
        base: whether the first one has to begin with noise alone.

    Raises:
        InputError: a stage starts from another size than the one before it makes, or there is none.
    """
    stages = {
        name: make_guided(entry, f"config.stages.{name}") for name, entry in config.stages.items()
    }
    if not stages:
        raise InputError("config.stages is empty; name at least one run of imagen_ft.finetune")
    ordered = dict(sorted(stages.items(), key=lambda item: item[1].image_size))
    size = 0 if base else next(iter(ordered.values())).denoiser.low_size
    for name, stage in ordered.items():
        if stage.denoiser.low_size != size:
            if not size:
                raise InputError(
                    f"config.stages.{name} starts from {stage.denoiser.low_size} px, which "
                    "no stage makes; name the run of one that does, too"
                )
            raise InputError(
                f"config.stages.{name} must start from the {size} px of the stage before "
                f"it, got {stage.denoiser.low_size}"
            )
        size = stage.image_size
    return ordered
