"""The auto-encoder of a stage that draws latents, from its denoiser's config."""

import ml_collections

from imagen_ft.diffusion.denoiser import Denoiser
from imagen_ft.models import presets
from imagen_ft.models.autoencoder import Autoencoder
from imagen_ft.models.latent_unet import LatentUNet
from launch.errors import InputError
from launch.runtime.config import module_fields
from launch.runtime.limits import SIDE, check_numbers, make_module
from launch.runtime.optional_fields import Defaults, below, defaults_of, unset

# Fields of the section that are not the network's: where its weights are.
WEIGHTS = ("weights", "variant")
# Height and width of the original, top and left of the crop, height and width of the image.
_SIZES = 6
_FIELD = "stage.autoencoder"


def make_autoencoder(config: ml_collections.ConfigDict) -> Autoencoder | None:
    """The auto-encoder of a denoiser's config; None where the network sees images.

    The section `autoencoder` has fields of `Autoencoder`, or `preset` (a name of `models.presets`)
    and the fields that differ; `weights`, a diffusers pipeline or an auto-encoder on its own where
    they are not with the network's; and their `variant`.
    """
    section = config.get("autoencoder")
    if not section:
        return None
    fields = module_fields(section, _FIELD)
    for name in WEIGHTS:
        fields.pop(name, None)
    preset = fields.pop("preset", "")
    if not preset:
        return make_module(Autoencoder, fields, _FIELD)
    if presets.find(preset).module is not Autoencoder:
        raise InputError(
            f"{_FIELD}.preset must be that of an auto-encoder, got {preset!r}; sd_vae, for example"
        )
    model = presets.make(preset, _FIELD, **fields)
    assert isinstance(model, Autoencoder)
    return model


def check_latents(denoiser: Denoiser) -> None:
    """Raises InputError unless network, auto-encoder and SDXL's extra inputs fit together."""
    model, autoencoder = denoiser.model, denoiser.autoencoder
    # 1. The network and its auto-encoder.
    if isinstance(model, LatentUNet) and autoencoder is None:
        raise InputError(
            f"{_FIELD} must be the auto-encoder of the latents that stage.unet draws, got none; "
            "add autoencoder=dict(preset='sd_vae')"
        )
    if autoencoder is not None and autoencoder.latent_channels != denoiser.channels:
        raise InputError(
            f"stage.channels must be {autoencoder.latent_channels}, as in the auto-encoder's "
            f"latents, got {denoiser.channels}; use the auto-encoder of these weights"
        )
    if autoencoder is not None and denoiser.low_size:
        raise InputError(
            "stage.low_size must be 0 for latents, which start from pure noise, got "
            f"{denoiser.low_size}; enlarge with a stage that draws pixels"
        )
    # 2. SDXL's inputs besides the text.
    told = isinstance(model, LatentUNet) and model.size_embedding_dim > 0
    if told != (denoiser.pooled_width > 0):
        raise InputError(
            f"stage.pooled_width must be {'above 0' if told else '0'} for a network "
            f"{'with' if told else 'without'} a size_embedding_dim, got {denoiser.pooled_width}; "
            "SDXL's is 1280"
        )
    names = [f"stage.sizes[{n}]" for n in range(len(denoiser.sizes))]
    if denoiser.sizes and (len(names) != _SIZES or not told):
        raise InputError(
            f"stage.sizes must be {_SIZES} numbers for SDXL, and left out for other models, got "
            f"{denoiser.sizes}; give the original's height and width, the crop's top and left, and "
            "the image's height and width"
        )
    numbers = dict(zip(names, denoiser.sizes, strict=True))
    check_numbers(numbers, dict.fromkeys(names, (0, SIDE[1])), "config")


def lacking_in_autoencoder(
    path: str, config: ml_collections.ConfigDict, autoencoder: Autoencoder | None
) -> Defaults:
    """Fields of an auto-encoder that the config of a denoiser, at `path`, does not set."""
    defaults: Defaults = {"weights": "", "variant": unset(str), "preset": ""}
    if autoencoder is not None:
        defaults |= defaults_of(autoencoder)
    return below(f"{path}.autoencoder", config.get("autoencoder") or {}, defaults)
