"""`config.json` of Stable Diffusion's U-Nets in diffusers' layout, read and written."""

import functools
from collections.abc import Mapping
from typing import Any

import jax

from imagen_ft.models.latent_unet import Added, LatentUNet
from imagen_ft.weights.config_fields import check_class, own_fields
from launch.errors import InputError
from launch.runtime.limits import building, make_module

# Fields with one supported value: (diffusers' default if the file lacks it, that value).
_FIXED: dict[str, tuple[Any, Any]] = {
    "act_fn": ("silu", "silu"),
    "attention_type": ("default", "default"),
    "center_input_sample": (False, False),
    "class_embed_type": (None, None),
    "class_embeddings_concat": (False, False),
    "conv_in_kernel": (3, 3),
    "conv_out_kernel": (3, 3),
    "cross_attention_norm": (None, None),
    "downsample_padding": (1, 1),
    "dropout": (0.0, 0.0),
    "dual_cross_attention": (False, False),
    "encoder_hid_dim": (None, None),
    "encoder_hid_dim_type": (None, None),
    "flip_sin_to_cos": (True, True),
    "freq_shift": (0, 0),
    "mid_block_scale_factor": (1, 1),
    "mid_block_type": ("UNetMidBlock2DCrossAttn", "UNetMidBlock2DCrossAttn"),
    "norm_eps": (1e-5, 1e-5),
    "num_attention_heads": (None, None),
    "num_class_embeds": (None, None),
    "only_cross_attention": (False, False),
    "resnet_out_scale_factor": (1.0, 1.0),
    "resnet_skip_time_act": (False, False),
    "resnet_time_scale_shift": ("default", "default"),
    "reverse_transformer_layers_per_block": (None, None),
    "time_cond_proj_dim": (None, None),
    "time_embedding_act_fn": (None, None),
    "time_embedding_dim": (None, None),
    "time_embedding_type": ("positional", "positional"),
    "timestep_post_act": (None, None),
}
# Fields that tell the U-Nets apart, with diffusers' defaults; `...`: the file must give it.
_OWN: dict[str, Any] = {
    "addition_embed_type": None,
    "addition_embed_type_num_heads": 64,  # used by other kinds of addition only
    "addition_time_embed_dim": None,
    "attention_head_dim": 8,  # the number of heads, despite its name
    "block_out_channels": ...,
    "cross_attention_dim": 1280,
    "down_block_types": ...,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_only_cross_attention": None,
    "norm_num_groups": 32,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": None,
    "sample_size": None,
    "transformer_layers_per_block": 1,
    "up_block_types": ...,
    "upcast_attention": False,  # the softmax is in float32 anyway
    "use_linear_projection": False,
}
# Class of a block -> whether it has transformers.
_DOWN = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}
_UP = {"UpBlock2D": False, "CrossAttnUpBlock2D": True}
# SDXL's sizes: two numbers each for the original, the crop and the image to make.
SIZES = 6


def is_latent(config: Mapping[str, Any]) -> bool:
    """Whether a U-Net's config is of Stable Diffusion's kind, not IF's."""
    middle = config.get("mid_block_type", "UNetMidBlock2DCrossAttn")
    down = config.get("down_block_types")
    blocks = down if isinstance(down, list) else []
    return middle == "UNetMidBlock2DCrossAttn" and any(block in _DOWN for block in blocks)


def build_latent_unet(config: Mapping[str, Any], where: Any) -> tuple[LatentUNet, Any]:
    """The float32 model that diffusers' `config.json` describes, and its parameters' shapes.

    Raises `InputError` naming the first field whose value is not implemented.
    """
    check_class(config, "UNet2DConditionModel", where)
    own = own_fields(config, _FIXED, _OWN, where, "use a U-Net of Stable Diffusion")
    with building(where):
        _check_own(own, where)
        model = make_module(LatentUNet, _fields(own), f"{where}: unet")
        pooled_width = 0
        if model.size_embedding_dim:
            # This input concatenates the pooled text and the sinusoids of all sizes.
            width = own["projection_class_embeddings_input_dim"]
            pooled_width = width - SIZES * model.size_embedding_dim
        return model, _shapes(model, own["in_channels"], own["cross_attention_dim"], pooled_width)


def latent_unet_config(model: LatentUNet, params: Any, sample_size: int) -> dict[str, Any]:
    """The `config.json` with which diffusers computes the same as `model`.

    `params` may be shapes only; `sample_size` is the height and width of the latents.
    """
    # 1. Widths of inputs are not fields of the model: take them from the parameters.
    listed = lambda value: value if isinstance(value, int) else list(value)  # noqa: E731
    down, up = ({value: name for name, value in table.items()} for table in (_DOWN, _UP))
    attention = [bool(has) for has in model.attention]
    text_keys = params["mid_block_attentions_0"]["transformer_blocks_0"]["attn2_to_k"]["kernel"]
    own = dict(
        attention_head_dim=listed(model.num_heads),
        block_out_channels=list(model.block_out_channels),
        cross_attention_dim=text_keys.shape[0],
        down_block_types=[down[has] for has in attention],
        in_channels=params["conv_in"]["kernel"].shape[2],
        layers_per_block=model.layers_per_block,
        norm_num_groups=model.num_groups,
        out_channels=model.out_channels,
        sample_size=sample_size,
        transformer_layers_per_block=listed(model.depths),
        up_block_types=[up[has] for has in reversed(attention)],
        use_linear_projection=model.linear_projection,
    )
    # 2. Add what SDXL alone has.
    if model.size_embedding_dim:
        added = params["add_embedding"]["linear_1"]["kernel"]
        own |= dict(
            addition_embed_type="text_time",
            addition_time_embed_dim=model.size_embedding_dim,
            projection_class_embeddings_input_dim=added.shape[0],
        )
    # 3. Write every field, so that a change of diffusers' defaults changes nothing.
    fixed = {field: ours for field, (_, ours) in _FIXED.items()}
    fields = {**fixed, **_OWN, **own}
    return {"_class_name": "UNet2DConditionModel", **dict(sorted(fields.items()))}


def _check_own(own: dict[str, Any], where: Any) -> None:
    def fail(field: str, reason: str) -> None:
        raise InputError(f"{where}: {field} is {own[field]!r}, {reason}")

    # 1. Blocks: known ones, and the same levels going down and up.
    levels = len(own["block_out_channels"])
    for field, blocks in (("down_block_types", _DOWN), ("up_block_types", _UP)):
        for block in own[field]:
            if block not in blocks:
                fail(field, f"but {block} is not implemented; known are {', '.join(blocks)}")
    if [_DOWN[b] for b in own["down_block_types"]] != [
        _UP[b] for b in reversed(own["up_block_types"])
    ]:
        fail("up_block_types", "but only the mirror of down_block_types is implemented")
    # 2. Lists have one entry a level; some fields may not be lists.
    for field in ("down_block_types", "attention_head_dim", "transformer_layers_per_block"):
        if isinstance(own[field], list) and len(own[field]) != levels:
            fail(field, f"but there are {levels} block_out_channels; give one for each")
    for field in ("layers_per_block", "cross_attention_dim"):
        if not isinstance(own[field], int):
            fail(field, "but only one number for all levels is implemented")
    # 3. Single values, and the embedding of SDXL's sizes.
    if own["mid_block_only_cross_attention"]:
        fail("mid_block_only_cross_attention", "but only None and False are implemented")
    if own["addition_embed_type"] not in (None, "text_time"):
        fail("addition_embed_type", "but only None and 'text_time' are implemented")
    if own["addition_embed_type"]:
        size, width = own["addition_time_embed_dim"], own["projection_class_embeddings_input_dim"]
        if not isinstance(size, int) or not isinstance(width, int) or not 0 < SIZES * size < width:
            fail(
                "projection_class_embeddings_input_dim",
                f"but must be the pooled text's width and {SIZES} times addition_time_embed_dim "
                f"({size!r}); use the config.json that came with these weights",
            )


def _fields(own: Mapping[str, Any]) -> dict[str, Any]:
    heads, depths = own["attention_head_dim"], own["transformer_layers_per_block"]
    return dict(
        out_channels=own["out_channels"],
        block_out_channels=tuple(own["block_out_channels"]),
        attention=tuple(_DOWN[block] for block in own["down_block_types"]),
        num_heads=tuple(heads) if isinstance(heads, list) else heads,
        layers_per_block=own["layers_per_block"],
        depths=tuple(depths) if isinstance(depths, list) else depths,
        linear_projection=own["use_linear_projection"],
        size_embedding_dim=own["addition_time_embed_dim"] if own["addition_embed_type"] else 0,
        num_groups=own["norm_num_groups"],
    )


@functools.cache  # tracing a large network takes seconds
def _shapes(model: LatentUNet, in_channels: int, text_width: int, pooled_width: int) -> Any:
    # The smallest latents that can be halved at every level; only shapes are computed.
    size = 2 ** (len(model.block_out_channels) - 1)
    floats = lambda *shape: jax.ShapeDtypeStruct(shape, "float32")  # noqa: E731
    inputs: list[Any] = [floats(1, size, size, in_channels), floats(1), floats(1, 1, text_width)]
    if model.size_embedding_dim:
        added: Any = floats(1, pooled_width), floats(1, SIZES)
        inputs.append(Added(*added))
    return jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
