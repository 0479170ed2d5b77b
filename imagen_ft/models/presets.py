"""The models by name: DeepFloyd IF, Imagen, T5, Stable Diffusion, and a tiny one of each kind.

IF's and Stable Diffusion's numbers come from their public configurations, T5's from its v1.1
checkpoints, Imagen's from the paper (Saharia et al. 2022, appendix B). Where the paper is silent
we chose:

* The text is projected to 1,024 channels before it is pooled and attended to.
* imagen_base64: the embeddings are as wide as the finest level. At four times that, the usual
  width, the network would have 2.23B parameters instead of about 2B.
* imagen_sr256: the paper lists the same residual blocks for both super-resolution stages, and
  self-attention is 2% of the parameters, so the stages cannot have 600M and 400M. With the listed
  2, 4, 8, 8 ours has 424M; four more each way at the lowest resolution, where they cost least, make
  it 583M.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from classifiers.models.clip_text import ClipTextEncoder
from imagen_ft.models.autoencoder import Autoencoder
from imagen_ft.models.efficient_unet import EfficientUNet
from imagen_ft.models.latent_unet import Added, LatentUNet
from imagen_ft.models.t5 import T5Encoder
from imagen_ft.models.unet import UNet
from launch.errors import InputError
from launch.runtime.limits import make_module

T5_XXL_WIDTH, TINY_T5_WIDTH = 4096, 16


@dataclasses.dataclass(frozen=True)
class Preset:
    """A row of the table: a class and its fields that differ from their defaults."""

    module: type[nn.Module]
    fields: dict[str, Any]
    text_width: int = T5_XXL_WIDTH  # channels of the text states that a U-Net attends to
    pooled_width: int = 0  # channels of SDXL's pooled text; 0: the U-Net takes none


def _if_i(width: int) -> Preset:
    # All of IF's base models scale one number: levels are 1 to 4 times as wide.
    fields = dict(
        out_channels=6,  # eps and the learned variance
        block_out_channels=(width, 2 * width, 3 * width, 4 * width),
        layers_per_block=3,
        attention=(False, True, True, True),
        cross_attention_dim=4 * width,
    )
    return Preset(UNet, fields)


def _if_ii(widths: tuple[int, ...], layers: tuple[int, ...]) -> Preset:
    # In IF's super-resolution, text and embeddings are as wide as the coarsest level.
    fields = dict(
        out_channels=6,
        block_out_channels=widths,
        layers_per_block=layers,
        attention=(False, False, False, True, True),
        cross_attention_dim=widths[-1],
        time_embedding_dim=widths[-1],
        noise_level=True,
        skip_time_act=True,
        out_scale=1.41422712,  # as in the public config, for sqrt(2) = 1.41421356
    )
    return Preset(UNet, fields)


def _imagen_base(width: int) -> Preset:
    fields = dict(_if_i(width).fields, out_channels=3, cross_attention_dim=1024)
    return Preset(UNet, dict(fields, time_embedding_dim=width))


def _imagen_sr(layers: tuple[int, ...], self_attention: bool) -> Preset:
    fields = dict(
        out_channels=3,
        block_out_channels=(128, 256, 512, 1024),
        layers_per_block=layers,
        self_attention=(False, False, False, self_attention),
        text_attention=(False, False, False, True),
        cross_attention_dim=1024,
    )
    return Preset(EfficientUNet, fields)


def _t5(d_model: int, d_ff: int, num_layers: int, num_heads: int, d_kv: int = 64) -> Preset:
    fields = dict(d_model=d_model, d_ff=d_ff, num_layers=num_layers, num_heads=num_heads)
    return Preset(T5Encoder, dict(fields, vocab_size=32128, d_kv=d_kv))


def _sd(text_width: int, pooled_width: int = 0, **fields: Any) -> Preset:
    # `attention_head_dim` in the public configs is the number of heads, despite its name.
    usual = dict(
        out_channels=4,
        block_out_channels=(320, 640, 1280, 1280),
        attention=(True, True, True, False),
    )
    return Preset(LatentUNet, usual | fields, text_width, pooled_width)


def _tiny_sd(pooled_width: int = 0, **fields: Any) -> Preset:
    # Two levels of one layer; the text states are the tiny CLIP's, as wide as the tiny T5's.
    usual = dict(block_out_channels=(8, 16), layers_per_block=1, num_groups=4)
    return _sd(TINY_T5_WIDTH, pooled_width, **usual, **fields)


def _vae(**fields: Any) -> Preset:
    # Stable Diffusion's auto-encoders differ only in their weights and the scale of the latents.
    return Preset(Autoencoder, dict(block_out_channels=(128, 256, 512, 512)) | fields)


def _clip(width: int, num_layers: int, num_heads: int, **fields: Any) -> Preset:
    fields = dict(width=width, num_layers=num_layers, num_heads=num_heads) | fields
    # end_token=2, as in the public configs, selects pooling at the highest id of a prompt.
    return Preset(ClipTextEncoder, dict(mlp_width=4 * width, end_token=2) | fields)


def _tiny(preset: Preset, **attention: Any) -> Preset:
    # The same kind of network with two levels of one layer.
    fields = dict(
        preset.fields,
        block_out_channels=(8, 16),
        layers_per_block=(1, 1),
        cross_attention_dim=16,
        time_embedding_dim=32,
        num_groups=4,
        pooling_heads=2,
    )
    return dataclasses.replace(preset, fields=fields | attention, text_width=TINY_T5_WIDTH)


_TINY_UNET = dict(attention=(False, True), attention_head_dim=8, cross_num_groups=4)
_TINY_SR = dict(self_attention=(False, True), text_attention=(False, True), num_heads=2)

PRESETS = {
    "if_i_m": _if_i(192),
    "if_i_l": _if_i(320),
    "if_i_xl": _if_i(704),
    "if_ii_m": _if_ii((128, 256, 512, 768, 768), layers=(2, 2, 3, 4, 2)),
    "if_ii_l": _if_ii((160, 320, 640, 960, 1280), layers=(2, 2, 3, 5, 5)),
    "imagen_base64": _imagen_base(512),
    "imagen_sr256": _imagen_sr((2, 4, 8, 12), self_attention=True),
    "imagen_sr1024": _imagen_sr((2, 4, 8, 8), self_attention=False),
    "t5_xxl": _t5(T5_XXL_WIDTH, d_ff=10240, num_layers=24, num_heads=64),
    "t5_small": _t5(512, d_ff=1024, num_layers=8, num_heads=6),
    "sd15": _sd(768, num_heads=8),
    "sd21": _sd(1024, num_heads=(5, 10, 20, 20), linear_projection=True),
    "sdxl": _sd(
        2048,
        pooled_width=1280,
        block_out_channels=(320, 640, 1280),
        attention=(False, True, True),
        num_heads=(5, 10, 20),
        depths=(1, 2, 10),
        linear_projection=True,
        size_embedding_dim=256,
    ),
    "clip_l": _clip(768, num_layers=12, num_heads=12, activation="quick_gelu"),
    # 24 layers were trained; Stable Diffusion 2 takes the states before the last one.
    "openclip_h": _clip(1024, num_layers=23, num_heads=16),
    "openclip_g": _clip(1280, num_layers=32, num_heads=20, projection_width=1280),
    "sd_vae": _vae(),
    "sdxl_vae": _vae(scaling_factor=0.13025),
    "tiny_if_i": _tiny(_if_i(8), **_TINY_UNET),
    "tiny_if_ii": _tiny(_if_ii((8, 16), (1, 1)), **_TINY_UNET),
    "tiny_imagen_base": _tiny(_imagen_base(8), **_TINY_UNET),
    "tiny_imagen_sr": _tiny(_imagen_sr((1, 1), self_attention=True), **_TINY_SR),
    "tiny_t5": _t5(TINY_T5_WIDTH, d_ff=16, num_layers=2, num_heads=2, d_kv=8),
    "tiny_sd15": _tiny_sd(attention=(True, False), num_heads=2),
    "tiny_sd21": _tiny_sd(attention=(True, False), num_heads=(2, 4), linear_projection=True),
    "tiny_sdxl": _tiny_sd(
        pooled_width=8,
        attention=(False, True),
        num_heads=(2, 4),
        depths=(1, 2),
        linear_projection=True,
        size_embedding_dim=4,
    ),
    "tiny_clip": _clip(
        16, num_layers=2, num_heads=2, projection_width=8, vocab_size=64, max_length=12
    ),
    "tiny_vae": _vae(block_out_channels=(8, 16), layers_per_block=1, num_groups=4),
}


def make(name: str, field: str = "model", /, **overrides: Any) -> nn.Module:
    """The model of a row of `PRESETS`, with `overrides` of its fields; `field` is for messages.

    Raises `InputError` if there is no such model or field, or a field has a wrong value.
    """
    preset = find(name)
    names = {field.name for field in dataclasses.fields(preset.module)} - {"parent", "name"}
    if unknown := sorted(set(overrides) - names):
        raise InputError(
            f"model {name!r} has no field {unknown[0]!r}; use {', '.join(sorted(names))}"
        )
    return make_module(preset.module, preset.fields | overrides, field)


def parameter_shapes(name: str, **overrides: Any) -> dict[str, Any]:
    """Shapes and types of the parameters, by module and name; arguments and errors as in `make`.

    Nothing is allocated. A pixel model takes images of three channels, and three more of the
    low-resolution image if it has `noise_level`; a latent model takes as many as it predicts.
    """
    model = make(name, **overrides)
    inputs = _INPUTS.get(type(model), _unet_inputs)(model, find(name))
    return jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]


def _floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, "float32")


def _image(model: Any, channels: int) -> jax.ShapeDtypeStruct:
    size = 2 ** len(model.block_out_channels)  # the smallest that can be halved at every level
    return _floats(1, size, size, channels)


def _unet_inputs(model: Any, preset: Preset) -> list[Any]:
    level = [_floats(1)] if model.noise_level else []
    image = _image(model, 6 if model.noise_level else 3)
    return [image, _floats(1), _floats(1, 1, preset.text_width), *level]


def _latent_unet_inputs(model: Any, preset: Preset) -> list[Any]:
    width = preset.pooled_width
    added = Added(_floats(1, width), _floats(1, 6)) if width else None  # type: ignore[arg-type]
    text = _floats(1, 1, preset.text_width)
    return [_image(model, model.out_channels), _floats(1), text, added]


_TOKENS, _MASK = (jax.ShapeDtypeStruct((1, 1), dtype) for dtype in ("int32", "bool"))
# What a class of models takes, for one example with one token; all others denoise pixels.
_INPUTS: dict[type[nn.Module], Callable[[Any, Preset], list[Any]]] = {
    Autoencoder: lambda model, preset: [_image(model, model.out_channels)],
    ClipTextEncoder: lambda model, preset: [_TOKENS],
    LatentUNet: _latent_unet_inputs,
    T5Encoder: lambda model, preset: [_TOKENS, _MASK],
}


def find(name: str) -> Preset:
    """The row of that name. Raises `InputError` if there is none."""
    if name not in PRESETS:
        raise InputError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]
