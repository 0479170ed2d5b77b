"""Stable Diffusion's weights as a stage: what their files say of it, and of how it is sampled."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections

from classifiers.models.clip_text import ClipTextEncoder
from imagen_ft import weights
from imagen_ft.diffusion.schedule import make_schedule
from imagen_ft.diffusion.spacing import OPEN, SIGMA_SPACINGS
from imagen_ft.models.latent_unet import LatentUNet
from imagen_ft.weights.latent_parts import is_latent_scheduler, latent_settings
from imagen_ft.weights.pipeline_parts import NoSuchPart
from launch.cli import say
from launch.errors import InputError
from launch.files import read_object

# What decides how a network is computed, and what the stage's other fields say.
_LEFT_OUT = ("parent", "name", "dtype", "remat", "out_channels", "noise_level")
# Where the U-Net's config names no size of latents.
_SIZE = 64
# diffusers' schedulers: our sampler and its fields, the spacing where the file names none, and
# whether it calls by that name what is open here. DDIM stands in for others.
_SAMPLERS: dict[str, tuple[dict[str, Any], str, bool]] = {
    "DDIMScheduler": (dict(name="ddim", eta=0.0, logvar_coeff=0.0), "leading", False),
    "DDPMScheduler": (dict(name="ddpm", logvar_coeff=0.0, eta=0.0), "leading", False),
    "DPMSolverMultistepScheduler": (dict(name="dpmpp"), "linspace", True),
    "EulerAncestralDiscreteScheduler": (dict(name="euler_ancestral"), "linspace", False),
    "EulerDiscreteScheduler": (dict(name="euler"), "linspace", False),
    "UniPCMultistepScheduler": (dict(name="unipc"), "linspace", True),
}
_SPACINGS = ("linspace", "leading", "trailing")
# What else a scheduler may be asked for, and with which values we draw the same.
_ASKED = {
    "algorithm_type": ("dpmsolver++",),
    "use_beta_sigmas": (False,),
    "use_lu_lambdas": (False,),
}


def fields_of(model: Any) -> dict[str, Any]:
    """What a network is made of, but for what decides how it is computed."""
    names = [field.name for field in dataclasses.fields(model) if field.name not in _LEFT_OUT]
    return {name: getattr(model, name) for name in names}


def stage_of(path: str, model: LatentUNet, variant: str | None) -> dict[str, Any]:
    """The fields of a denoiser, as the files of a pipeline have them.

    Args:
        path: of the pipeline: a folder, an import or a repository of the Hub.
        model: its U-Net.
        variant: of its weights.

    Raises:
        InputError: a part is missing or none of a Stable Diffusion.
    """
    unet = read_object(weights.part_folder(path, "unet") / "config.json")
    autoencoder, _ = weights.open_model("vae", path, variant)
    settings = settings_of(path)
    if settings is None:
        raise InputError(
            f"{path} has no scheduler, which says how the weights were trained; name a whole "
            "pipeline, or a config with a schedule"
        )
    pooled_width = 0
    if model.size_embedding_dim:
        second, _ = weights.open_model("text_encoder_2", path, variant)
        if isinstance(second, ClipTextEncoder):
            pooled_width = second.projection_width
    return dict(
        size=unet.get("sample_size") or _SIZE,
        low_size=0,
        channels=autoencoder.latent_channels,
        **settings,
        pooled_width=pooled_width,
        unet={**fields_of(model), "dtype": "auto"},
        autoencoder={**fields_of(autoencoder), "out_channels": autoencoder.out_channels}
        | {"dtype": "auto", "weights": ""},
    )


def settings_of(path: str) -> dict[str, Any] | None:
    """`schedule` and `prediction` of a pipeline; None where it has no scheduler.

    Raises:
        InputError: they are not implemented.
    """
    file = _scheduler(path)
    return None if file is None else latent_settings(*file)


def sampler_of(path: str) -> dict[str, Any]:
    """The sampler that a pipeline's scheduler names, without its number of steps.

    Where it names one that we have not, a line says what stands in for it.

    Raises:
        InputError: a field has a wrong value.
    """
    said, where = _scheduler(path) or ({"_class_name": "DDIMScheduler"}, path)
    name = said.get("_class_name")
    ours = name if isinstance(name, str) and name in _SAMPLERS else "DDIMScheduler"
    of_class, spacing, is_open = _SAMPLERS[ours]
    fields = dict(of_class)
    unlike = [] if ours == name else [f"_class_name={name!r}"]
    if fields["name"] not in ("ddim", "ddpm"):
        asked = [(field, said[field]) for field in _ASKED if field in said]
        unlike += [f"{field}={value!r}" for field, value in asked if value not in _ASKED[field]]
    if unlike:
        # Otherwise another picture than diffusers' would be a riddle.
        say(f"warning: {where} asks for {', '.join(unlike)}; {fields['name']} replaces it")
    spacing = _one_of(said, "timestep_spacing", spacing, _SPACINGS, where)
    if spacing == "leading" and _one_of(said, "steps_offset", 0, (0, 1), where):
        spacing = "leading_one"
    by_sigma = [name for name in SIGMA_SPACINGS if said.get(f"use_{name}_sigmas")]
    if by_sigma and fields["name"] not in ("ddim", "ddpm"):
        fields["spacing"] = by_sigma[0]
    else:
        fields["spacing"] = f"{spacing}{OPEN}" if is_open and spacing != "trailing" else spacing
    if fields["name"] == "ddim":
        ends_in_data = name != "PNDMScheduler"
        clean = _one_of(said, "set_alpha_to_one", ends_in_data, (True, False), where)
        fields["keeps_noise"] = not clean
    if fields["name"] in ("dpmpp", "unipc"):
        fields["order"] = said.get("solver_order", 2)
    return fields


def _one_of(said: Mapping[str, Any], field: str, default: Any, known: tuple, where: Any) -> Any:
    """A field of a scheduler."""
    value = said.get(field, default)
    if not any(type(value) is type(one) and value == one for one in known):
        names = " or ".join(map(repr, known))
        raise InputError(f"{where}: {field} must be {names}, got {value!r}; use another scheduler")
    return value


def has_zeros_for_no_text(path: str) -> bool:
    """Whether no text is zeros to a pipeline (SDXL), and not the states of the empty prompt."""
    try:
        index = read_object(weights.part_folder(path, "scheduler").parent / "model_index.json")
    except (NoSuchPart, InputError, OSError):
        index = {}
    return bool(index.get("force_zeros_for_empty_prompt", True))


def check_settings(field: str, stage: ml_collections.ConfigDict, path: str) -> None:
    """Compares a denoiser with the scheduler of its weights.

    Args:
        field: of the denoiser in the config.
        stage: of the denoiser.
        path: of the weights.

    Raises:
        InputError: it has another noise schedule or prediction.
    """
    theirs = settings_of(path)
    if theirs is None:
        return
    if make_schedule(stage.schedule) != make_schedule(theirs["schedule"]):
        raise InputError(
            f"{field}.schedule must be that of the weights of {path}, {theirs['schedule']}, got "
            f"{stage.schedule!r}; take theirs"
        )
    if (ours := stage.get("prediction", "eps")) != theirs["prediction"]:
        raise InputError(
            f"{field}.prediction must be that of the weights of {path}, {theirs['prediction']!r}, "
            f"got {ours!r}; take theirs"
        )


def is_latent(path: str) -> bool:
    """Whether the scheduler that weights come with is of Stable Diffusion's kind."""
    file = _scheduler(path)
    return file is not None and is_latent_scheduler(file[0])


def _scheduler(path: str) -> tuple[Mapping[str, Any], Any] | None:
    """The content and the path of a pipeline's `scheduler_config.json`."""
    try:
        file = weights.part_folder(path, "scheduler") / "scheduler_config.json"
    except NoSuchPart:
        return None
    return read_object(file), file
