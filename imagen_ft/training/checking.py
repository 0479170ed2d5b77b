"""Checks of a config before training."""

import dataclasses
from collections.abc import Collection

import ml_collections
from jax.sharding import Mesh

from imagen_ft.diffusion.denoiser import Denoiser
from imagen_ft.training.sampled_metric import is_measured, metric_name
from launch.errors import InputError
from launch.runtime.ema import MAIN
from launch.runtime.training.loop import check_training


def check_run(config: ml_collections.ConfigDict, mesh: Mesh, decays: Collection[str]) -> None:
    """Raises InputError for numbers that training could not work with; names the field."""
    check_training(config, mesh)
    # 1. Every part of a batch must fill all devices.
    splits = config.accumulation
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if splits < 1 or config.batch_size % (ways * splits):
        raise InputError(
            f"config.accumulation must divide batch_size={config.batch_size} into parts "
            f"for {ways} devices (mesh.data x mesh.fsdp), got {splits}"
        )
    # 2. Single numbers.
    if not 0.0 <= config.text_drop <= 1.0:
        raise InputError(f"config.text_drop must be in [0, 1], got {config.text_drop}")
    if config.evaluation_draws < 1:
        raise InputError(
            f"config.evaluation_draws must be at least 1, got {config.evaluation_draws}"
        )
    if config.get("pictures_every", 0) and config.pictures.count < 1:
        raise InputError(f"config.pictures.count must be at least 1, got {config.pictures.count}")
    # 3. A metric that the run will really log.
    measured = [loss_name(name) for name in decays or (MAIN,)]
    if is_measured(config):
        measured.append(metric_name(config.evaluation_metric))
    if config.get("best") and config.best.metric not in measured:
        raise InputError(
            f"config.best.metric must be one of {', '.join(measured)}, got {config.best.metric!r}"
        )


def crop(denoiser: Denoiser, size: int) -> Denoiser:
    """The same network for crops of its images; 0 is whole images. Raises InputError."""
    if not size:
        return denoiser
    # A crop must be a whole number of low-resolution pixels.
    factor = denoiser.size // max(1, denoiser.low_size)
    if not 0 < size <= denoiser.size or size % factor or not denoiser.low_size:
        raise InputError(
            f"config.crop_size must be a multiple of {factor} up to "
            f"stage.size={denoiser.size}, for super-resolution, or 0 for whole images, got "
            f"{size}"
        )
    return dataclasses.replace(denoiser, size=size, low_size=size // factor)


def loss_name(average: str) -> str:
    """What the validation loss of a moving average is logged as."""
    return "validation_loss" if average == MAIN else f"validation_loss_{average}"
