"""`config.json` of DeepFloyd IF's U-Nets in diffusers' layout, read and written.

`UNet2DConditionModel` has many forms; a field that would select another one is an error.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from imagen_ft.models.unet import UNet
from imagen_ft.weights.config_fields import check_class, own_fields
from launch.errors import InputError
from launch.runtime.limits import building, make_module

# Fields with one supported value: (diffusers' default if the file lacks it, that value).
_FIXED: dict[str, tuple[Any, Any]] = {
    "act_fn": ("silu", "gelu"),
    "addition_embed_type": (None, "text"),
    "addition_time_embed_dim": (None, None),
    "attention_type": ("default", "default"),
    "center_input_sample": (False, False),
    "class_embeddings_concat": (False, False),
    "conv_in_kernel": (3, 3),
    "conv_out_kernel": (3, 3),
    "cross_attention_norm": (None, "group_norm"),
    "downsample_padding": (1, 1),
    "dropout": (0.0, 0.0),
    "dual_cross_attention": (False, False),
    "encoder_hid_dim_type": ("text_proj", "text_proj"),
    "flip_sin_to_cos": (True, True),
    "freq_shift": (0, 0),
    "mid_block_type": ("UNetMidBlock2DCrossAttn", "UNetMidBlock2DSimpleCrossAttn"),
    "norm_eps": (1e-5, 1e-5),
    "num_attention_heads": (None, None),
    "num_class_embeds": (None, None),
    "only_cross_attention": (False, False),
    "projection_class_embeddings_input_dim": (None, None),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "reverse_transformer_layers_per_block": (None, None),
    "time_cond_proj_dim": (None, None),
    "time_embedding_type": ("positional", "positional"),
    "timestep_post_act": (None, None),
    "transformer_layers_per_block": (1, 1),
    "use_linear_projection": (False, False),
}
# Fields that tell IF's U-Nets apart, with diffusers' defaults. `_check_own` demands those that are
# None here and that every IF has.
_OWN: dict[str, Any] = {
    "addition_embed_type_num_heads": 64,
    "attention_head_dim": 8,
    "block_out_channels": None,
    "class_embed_type": None,
    "cross_attention_dim": 1280,
    "down_block_types": None,
    "encoder_hid_dim": None,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1.0,
    "norm_num_groups": 32,
    "out_channels": 4,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "sample_size": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "up_block_types": None,
    "upcast_attention": False,  # ignored by these blocks
}
# Fields that are numbers above 0, or lists of them.
_POSITIVE = (
    "addition_embed_type_num_heads",
    "attention_head_dim",
    "block_out_channels",
    "cross_attention_dim",
    "encoder_hid_dim",
    "in_channels",
    "layers_per_block",
    "mid_block_scale_factor",
    "norm_num_groups",
    "out_channels",
    "resnet_out_scale_factor",
)
# Class of a block -> whether it has attention.
_DOWN = {"ResnetDownsampleBlock2D": False, "SimpleCrossAttnDownBlock2D": True}
_UP = {"ResnetUpsampleBlock2D": False, "SimpleCrossAttnUpBlock2D": True}
# Groups of the text's norm: a constant in diffusers, not a field.
_CROSS_GROUPS = 32


def build_unet(config: Mapping[str, Any], where: Any) -> tuple[UNet, Any]:
    """The float32 model that diffusers' `config.json` describes, and its parameters' shapes.

    Raises `InputError` naming the first field whose value is not implemented.
    """
    check_class(config, "UNet2DConditionModel", where)
    # diffusers turns None into "text_proj" where encoder_hid_dim is given.
    config = {**config, "encoder_hid_dim_type": config.get("encoder_hid_dim_type") or "text_proj"}
    own = own_fields(config, _FIXED, _OWN, where, "use a U-Net of DeepFloyd IF")
    with building(where):
        _check_own(own, where)
        model = make_module(UNet, _fields(own), f"{where}: unet")
        return model, unet_shapes(model, own["in_channels"], own["encoder_hid_dim"])


def _check_own(own: dict[str, Any], where: Any) -> None:
    def fail(field: str, reason: str) -> None:
        raise InputError(f"{where}: {field} is {own[field]!r}, {reason}")

    # 1. Required fields.
    for field in ("block_out_channels", "down_block_types", "up_block_types", "encoder_hid_dim"):
        if own[field] is None:
            fail(field, "but every U-Net of DeepFloyd IF has it; use its config.json")
    # 2. Lists of one repeated number become that number, in place.
    levels = len(own["block_out_channels"])
    for field in ("attention_head_dim", "cross_attention_dim"):
        if isinstance(own[field], list):
            if len(own[field]) != levels:
                fail(field, f"but there are {levels} block_out_channels; give one for each")
            if len(set(own[field])) == 1:
                own[field] = own[field][0]
    if isinstance(own["cross_attention_dim"], list):
        fail("cross_attention_dim", "but only one number for all levels is implemented")
    # 3. Blocks: known ones, and the same levels going down and up.
    for field, blocks in (("down_block_types", _DOWN), ("up_block_types", _UP)):
        if len(own[field]) != levels:
            fail(field, f"but there are {levels} block_out_channels; give one for each")
        for block in own[field]:
            if block not in blocks:
                fail(field, f"but {block} is not implemented; known are {', '.join(blocks)}")
    if [_DOWN[b] for b in own["down_block_types"]] != [
        _UP[b] for b in reversed(own["up_block_types"])
    ]:
        fail("up_block_types", "but only the mirror of down_block_types is implemented")
    # 4. Single values.
    layers = own["layers_per_block"]
    if isinstance(layers, list) and len(layers) != levels:
        fail("layers_per_block", f"but there are {levels} block_out_channels; give one for each")
    if own["class_embed_type"] not in (None, "timestep"):
        fail("class_embed_type", "but only None and 'timestep' are implemented")
    if own["mid_block_only_cross_attention"]:
        fail("mid_block_only_cross_attention", "but only None and False are implemented")
    if own["norm_num_groups"] is None:
        fail("norm_num_groups", "but a U-Net without norms is not implemented")
    if own["time_embedding_act_fn"] not in (None, "gelu"):
        fail("time_embedding_act_fn", "but only None and 'gelu' are implemented")
    for field in _POSITIVE:
        values = own[field] if isinstance(own[field], list) else [own[field]]
        if not all(isinstance(v, int | float) and v > 0 for v in values):
            fail(field, "but must be a number above 0")


def _fields(own: Mapping[str, Any]) -> dict[str, Any]:
    layers, head_dim = own["layers_per_block"], own["attention_head_dim"]
    out_scale, mid_out_scale = own["resnet_out_scale_factor"], own["mid_block_scale_factor"]
    time_act, skip_time_act = own["time_embedding_act_fn"] is not None, own["resnet_skip_time_act"]
    return dict(
        out_channels=own["out_channels"],
        block_out_channels=tuple(own["block_out_channels"]),
        layers_per_block=tuple(layers) if isinstance(layers, list) else layers,
        attention=tuple(_DOWN[block] for block in own["down_block_types"]),
        cross_attention_dim=own["cross_attention_dim"],
        time_embedding_dim=own["time_embedding_dim"] or 0,
        attention_head_dim=tuple(head_dim) if isinstance(head_dim, list) else head_dim,
        num_groups=own["norm_num_groups"],
        cross_num_groups=_CROSS_GROUPS,
        pooling_heads=own["addition_embed_type_num_heads"],
        noise_level=own["class_embed_type"] == "timestep",
        skip_time_act=skip_time_act,
        # None for the usual value, so that the model compares equal to its preset.
        time_act=None if time_act == skip_time_act else time_act,
        out_scale=float(out_scale),
        mid_out_scale=None if mid_out_scale == out_scale else float(mid_out_scale),
    )


@functools.cache  # tracing a large network takes seconds
def unet_shapes(model: UNet, in_channels: int, text_width: int) -> Any:
    """Shapes of the parameters; `in_channels` includes those of the low-resolution images."""
    size = 2 ** (len(model.block_out_channels) - 1)
    x, t = jnp.zeros((1, size, size, in_channels)), jnp.zeros((1,))
    level = t if model.noise_level else None
    text = jnp.zeros((1, 1, text_width))
    return jax.eval_shape(model.init, jax.random.key(0), x, t, text, level)["params"]


def unet_config(model: UNet, params: Any, sample_size: int | None, where: Any) -> dict[str, Any]:
    """The `config.json` with which diffusers computes the same as `model`.

    `params` may be shapes only; `sample_size` is the height and width of the images in pixels.
    Raises `InputError`, naming `where`, if diffusers has no such network.
    """
    if model.cross_num_groups != _CROSS_GROUPS:
        raise InputError(
            f"{where}: cross_num_groups is {model.cross_num_groups}, but always {_CROSS_GROUPS} in "
            f"diffusers, so this model cannot be exported; train one with {_CROSS_GROUPS}"
        )
    # 1. Our None means "as another field"; diffusers' file spells the values out.
    levels = len(model.block_out_channels)
    layers, head_dim = model.layers_per_block, model.attention_head_dim
    mid_out_scale = model.out_scale if model.mid_out_scale is None else model.mid_out_scale
    time_act = model.skip_time_act if model.time_act is None else model.time_act
    down, up = ({value: name for name, value in table.items()} for table in (_DOWN, _UP))
    # 2. Widths of inputs are not fields of the model: take them from the parameters.
    own = dict(
        addition_embed_type_num_heads=model.pooling_heads,
        attention_head_dim=head_dim if isinstance(head_dim, int) else list(head_dim),
        block_out_channels=list(model.block_out_channels),
        class_embed_type="timestep" if model.noise_level else None,
        cross_attention_dim=model.cross_attention_dim,
        down_block_types=[down[bool(model.attention[level])] for level in range(levels)],
        encoder_hid_dim=params["encoder_hid_proj"]["kernel"].shape[0],
        in_channels=params["conv_in"]["kernel"].shape[2],
        layers_per_block=layers if isinstance(layers, int) else list(layers),
        mid_block_only_cross_attention=None,
        mid_block_scale_factor=mid_out_scale,
        norm_num_groups=model.num_groups,
        out_channels=model.out_channels,
        resnet_out_scale_factor=model.out_scale,
        resnet_skip_time_act=model.skip_time_act,
        sample_size=sample_size,
        time_embedding_act_fn="gelu" if time_act else None,
        time_embedding_dim=model.time_embedding_dim or None,
        up_block_types=[up[bool(model.attention[level])] for level in reversed(range(levels))],
        upcast_attention=False,
    )
    # 3. Write every field, so that a change of diffusers' defaults changes nothing.
    fixed = {field: ours for field, (_, ours) in _FIXED.items()}
    return {"_class_name": "UNet2DConditionModel", **dict(sorted({**fixed, **own}.items()))}
