"""Stable Diffusion's weights as a stage: what their files say about it and its sampling."""

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

# Fields about how a network is computed, and those that the stage's own fields decide.
_LEFT_OUT = ("parent", "name", "dtype", "remat", "out_channels", "noise_level")
# Pixels each way of the latents, where the U-Net's config does not say (SD 1.x: 512 / 8).
_SIZE = 64
# By diffusers' class: our sampler and its fields, the spacing where the file names none, and
# whether that name there means what is `OPEN` here. DDIM stands in for classes that we lack.
_SAMPLERS: dict[str, tuple[dict[str, Any], str, bool]] = {
    "DDIMScheduler": (dict(name="ddim", eta=0.0, logvar_coeff=0.0), "leading", False),
    "DDPMScheduler": (dict(name="ddpm", logvar_coeff=0.0, eta=0.0), "leading", False),
    "DPMSolverMultistepScheduler": (dict(name="dpmpp"), "linspace", True),
    "EulerAncestralDiscreteScheduler": (dict(name="euler_ancestral"), "linspace", False),
    "EulerDiscreteScheduler": (dict(name="euler"), "linspace", False),
    "UniPCMultistepScheduler": (dict(name="unipc"), "linspace", True),
}
_SPACINGS = ("linspace", "leading", "trailing")
# Other settings of a scheduler, with the values for which ours draws the same.
_ASKED = {
    "algorithm_type": ("dpmsolver++",),
    "use_beta_sigmas": (False,),
    "use_lu_lambdas": (False,),
}


def fields_of(model: Any) -> dict[str, Any]:
    """A network's fields, without those about how it is computed."""
    names = [field.name for field in dataclasses.fields(model) if field.name not in _LEFT_OUT]
    return {name: getattr(model, name) for name in names}


def stage_of(path: str, model: LatentUNet, variant: str | None) -> dict[str, Any]:
    """The fields of a denoiser, from the files of a pipeline; `model` is its U-Net."""
    # 1. Sizes and the auto-encoder.
    unet = read_object(weights.part_folder(path, "unet") / "config.json")
    autoencoder, _ = weights.open_model("vae", path, variant)
    # 2. Noise schedule and prediction.
    settings = settings_of(path)
    if settings is None:
        raise InputError(
            f"{path} has no scheduler, which says how the weights were trained; choose a whole "
            "pipeline, or set a schedule in the config"
        )
    # 3. SDXL: the second text encoder's pooled text.
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
    """`schedule` and `prediction` of a pipeline, if we have them; None without a scheduler."""
    file = _scheduler(path)
    return None if file is None else latent_settings(*file)


def sampler_of(path: str) -> dict[str, Any]:
    """The sampler that a pipeline's scheduler names, without its number of steps."""
    # 1. The class.
    said, where = _scheduler(path) or ({"_class_name": "DDIMScheduler"}, path)
    name = said.get("_class_name")
    ours = name if isinstance(name, str) and name in _SAMPLERS else "DDIMScheduler"
    of_class, spacing, is_open = _SAMPLERS[ours]
    fields = dict(of_class)
    # Every difference is collected for one warning.
    unlike = [] if ours == name else [f"_class_name={name!r}"]
    if fields["name"] not in ("ddim", "ddpm"):
        asked = [(field, said[field]) for field in _ASKED if field in said]
        unlike += [f"{field}={value!r}" for field, value in asked if value not in _ASKED[field]]
    if unlike:
        # Without this line a picture that differs from diffusers' would be a riddle.
        say(f"warning: {where} asks for {', '.join(unlike)}; {fields['name']} replaces it")
    # 2. The spacing: in steps, or in sigma where the file asks for it.
    spacing = _one_of(said, "timestep_spacing", spacing, _SPACINGS, where)
    if spacing == "leading" and _one_of(said, "steps_offset", 0, (0, 1), where):
        spacing = "leading_one"
    by_sigma = [name for name in SIGMA_SPACINGS if said.get(f"use_{name}_sigmas")]
    if by_sigma and fields["name"] not in ("ddim", "ddpm"):
        fields["spacing"] = by_sigma[0]
    else:
        fields["spacing"] = f"{spacing}{OPEN}" if is_open and spacing != "trailing" else spacing
    # 3. Fields of single samplers.
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
    """Whether zeros stand for no text (SDXL), rather than the states of the empty prompt."""
    try:
        index = read_object(weights.part_folder(path, "scheduler").parent / "model_index.json")
    except (NoSuchPart, InputError, OSError):
        # The weights came without their pipeline: SDXL's default below.
        index = {}
    return bool(index.get("force_zeros_for_empty_prompt", True))


def check_settings(field: str, stage: ml_collections.ConfigDict, path: str) -> None:
    """Raises InputError unless schedule and prediction are those of the weights' scheduler."""
    theirs = settings_of(path)
    if theirs is None:
        return
    if make_schedule(stage.schedule) != make_schedule(theirs["schedule"]):
        raise InputError(
            f"{field}.schedule must be {theirs['schedule']}, as for the weights of {path}, got "
            f"{stage.schedule!r}; set it to theirs"
        )
    if (ours := stage.get("prediction", "eps")) != theirs["prediction"]:
        raise InputError(
            f"{field}.prediction must be {theirs['prediction']!r}, as for the weights of {path}, "
            f"got {ours!r}; set it to theirs"
        )


def is_latent(path: str) -> bool:
    """Whether the scheduler that weights come with is of Stable Diffusion's kind."""
    file = _scheduler(path)
    return file is not None and is_latent_scheduler(file[0])


def _scheduler(path: str) -> tuple[Mapping[str, Any], Any] | None:
    """Content and path of a pipeline's `scheduler_config.json`."""
    try:
        file = weights.part_folder(path, "scheduler") / "scheduler_config.json"
    except NoSuchPart:
        return None
    return read_object(file), file
