"""`config.json` of an `AutoencoderKL` in diffusers' layout."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from imagen_ft.models.autoencoder import Autoencoder
from imagen_ft.weights.config_fields import check_class, own_fields
from launch.errors import InputError
from launch.runtime.limits import building, make_module

# Fields with one supported value: (diffusers' default, that value).
_FIXED: dict[str, tuple[Any, Any]] = {
    "act_fn": ("silu", "silu"),
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
    "latents_mean": (None, None),
    "latents_std": (None, None),
    "mid_block_add_attention": (True, True),
    "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
    "use_post_quant_conv": (True, True),
    "use_quant_conv": (True, True),
}
# Fields that may vary, with diffusers' defaults; `...`: the file must give it.
_OWN: dict[str, Any] = {
    "block_out_channels": ...,
    "force_upcast": True,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "scaling_factor": 0.18215,
    "shift_factor": None,
}


def build_autoencoder(config: Mapping[str, Any], where: Any) -> tuple[Autoencoder, Any]:
    """The float32 model that diffusers' `config.json` describes, and its parameters' shapes.

    Raises `InputError` naming the first field whose value is not implemented.
    """
    # 1. Read the fields.
    check_class(config, "AutoencoderKL", where)
    own = own_fields(config, _FIXED, _OWN, where, "use the auto-encoder of a Stable Diffusion")
    # 2. Check fields against each other.
    for field in ("down_block_types", "up_block_types"):
        blocks = config.get(field, [""])
        with building(where):
            levels = len(own["block_out_channels"])
        if len(blocks) != levels:
            raise InputError(
                f"{where}: {field} must have one entry for each of block_out_channels, got "
                f"{blocks!r}; use the config.json that came with these weights"
            )
    if own["in_channels"] != own["out_channels"]:
        raise InputError(
            f"{where}: in_channels is {own['in_channels']}, out_channels {own['out_channels']}; "
            "only auto-encoders of images are supported"
        )
    if not own["scaling_factor"]:
        raise InputError(
            f"{where}: scaling_factor must be above 0; use the config.json that came with these "
            "weights"
        )
    # 3. Build the model under our names.
    fields = dict(
        block_out_channels=tuple(own["block_out_channels"]),
        layers_per_block=own["layers_per_block"],
        latent_channels=own["latent_channels"],
        out_channels=own["out_channels"],
        num_groups=own["norm_num_groups"],
        scaling_factor=own["scaling_factor"],
        shift_factor=own["shift_factor"] or 0.0,  # null in Stable Diffusion's files
        force_upcast=own["force_upcast"],
    )
    with building(where):
        model = make_module(Autoencoder, fields, f"{where}: vae")
        return model, _shapes(model)


@functools.cache  # tracing a large network takes seconds
def _shapes(model: Autoencoder) -> Any:
    size = 2 ** (len(model.block_out_channels) - 1)
    images = jnp.zeros((1, size, size, model.out_channels))
    return jax.eval_shape(model.init, jax.random.key(0), images)["params"]
