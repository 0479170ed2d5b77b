"""Derives the parts' configs of a Stable Diffusion in the original layout from tensor shapes.

Functions raise `KeyError` with the name of a tensor that is missing.
"""

import re
from collections.abc import Mapping
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]

# Channels a head in all attentions except those of 1.x's U-Net, which has 8 heads everywhere.
_HEAD_WIDTH, _HEADS_1X = 64, 8
_SIZE_WIDTH = 256  # channels of the embedding of one of XL's sizes
_SIZES = 6  # numbers that describe XL's sizes


def unet_config(shapes: Shapes, pooled_width: int) -> dict[str, Any]:
    """Config of a U-Net; `pooled_width` is 0 if the file has no encoder with pooled text."""
    # 1. A level has `stride` numbered blocks: its resnets, then the one that halves.
    halving = [
        int(match[1])
        for name in shapes
        if (match := re.fullmatch(r"input_blocks\.(\d+)\.0\.op\.weight", name))
    ]
    stride = min(halving, default=0) or _missing("input_blocks.3.0.op.weight")
    first = [1 + level * stride for level in range(len(halving) + 1)]
    # 2. Widths, and blocks of the transformers (0: the level has none).
    widths = [shapes[f"input_blocks.{block}.0.in_layers.2.weight"][0] for block in first]
    depths = [_count(shapes, rf"input_blocks\.{b}\.1\.transformer_blocks\.(\d+)\.") for b in first]
    middle = "middle_block.1.transformer_blocks"
    # The coarsest level may have no transformer: its number of blocks is then the middle's.
    blocks = [*(depth or 1 for depth in depths[:-1]), _count(shapes, rf"{middle}\.(\d+)\.")]
    # 2.x introduced linear projections, and together with them heads of a fixed width.
    is_linear = len(shapes["middle_block.1.proj_in.weight"]) == 2
    heads = [max(1, width // _HEAD_WIDTH) for width in widths] if is_linear else _HEADS_1X
    config: dict[str, Any] = dict(
        _class_name="UNet2DConditionModel",
        attention_head_dim=heads,
        block_out_channels=widths,
        cross_attention_dim=shapes[f"{middle}.0.attn2.to_k.weight"][1],
        down_block_types=["CrossAttnDownBlock2D" if n else "DownBlock2D" for n in depths],
        in_channels=shapes["input_blocks.0.0.weight"][1],
        layers_per_block=stride - 1,
        out_channels=shapes["out.2.weight"][0],
        transformer_layers_per_block=blocks if max(blocks) > 1 else 1,
        up_block_types=["CrossAttnUpBlock2D" if n else "UpBlock2D" for n in reversed(depths)],
        use_linear_projection=is_linear,
    )
    # 3. XL's pooled text and sizes share one input: its width minus the text's is that of 6 sizes.
    if "label_emb.0.0.weight" in shapes:
        width = shapes["label_emb.0.0.weight"][1]
        size_width = (width - pooled_width) // _SIZES if pooled_width else _SIZE_WIDTH
        config |= dict(
            addition_embed_type="text_time",
            addition_time_embed_dim=size_width,
            projection_class_embeddings_input_dim=width,
        )
    return config


def autoencoder_config(shapes: Shapes, scaling_factor: float) -> dict[str, Any]:
    """Config of an auto-encoder."""
    levels = _count(shapes, r"encoder\.down\.(\d+)\.block\.")
    if not levels:
        _missing("encoder.down.0.block.0.conv1.weight")
    blocks = range(levels)
    return dict(
        _class_name="AutoencoderKL",
        block_out_channels=[shapes[f"encoder.down.{n}.block.0.conv1.weight"][0] for n in blocks],
        down_block_types=["DownEncoderBlock2D"] * levels,
        in_channels=shapes["encoder.conv_in.weight"][1],
        latent_channels=shapes["post_quant_conv.weight"][1],
        layers_per_block=_count(shapes, r"encoder\.down\.0\.block\.(\d+)\."),
        out_channels=shapes["decoder.conv_out.weight"][0],
        scaling_factor=scaling_factor,
        up_block_types=["UpDecoderBlock2D"] * levels,
    )


def clip_config(shapes: Shapes) -> dict[str, Any]:
    """Config of OpenAI's text encoder."""
    layers = _count(shapes, r"text_model\.encoder\.layers\.(\d+)\.")
    embeddings = "text_model.embeddings"
    return _text_config(
        shapes[f"{embeddings}.token_embedding.weight"],
        shapes[f"{embeddings}.position_embedding.weight"][0],
        shapes["text_model.encoder.layers.0.mlp.fc1.weight"][0],
        architectures=["CLIPTextModel"],
        hidden_act="quick_gelu",
        num_hidden_layers=layers,
    )


def open_clip_config(shapes: Shapes, is_pooled: bool) -> dict[str, Any]:
    """Config of open_clip's text encoder, with or without its last layer and pooled text.

    2.x's U-Net attends to the states before the last layer, so diffusers leaves that layer out.
    """
    layers = _count(shapes, r"transformer\.resblocks\.(\d+)\.")
    fields: dict[str, Any] = dict(architectures=["CLIPTextModel"], num_hidden_layers=layers - 1)
    if is_pooled:
        fields = dict(
            architectures=["CLIPTextModelWithProjection"],
            num_hidden_layers=layers,
            projection_dim=shapes["text_projection"][1],
        )
    return _text_config(
        shapes["token_embedding.weight"],
        shapes["positional_embedding"][0],
        shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
        hidden_act="gelu",
        **fields,
    )


def _text_config(
    embedding: tuple[int, ...], length: int, mlp_width: int, **fields: Any
) -> dict[str, Any]:
    rows, width = embedding
    return dict(
        model_type="clip_text_model",
        eos_token_id=2,  # transformers then pools at the highest id, which is the end token's
        hidden_size=width,
        intermediate_size=mlp_width,
        max_position_embeddings=length,
        num_attention_heads=max(1, width // _HEAD_WIDTH),
        vocab_size=rows,
        **fields,
    )


def _count(shapes: Shapes, pattern: str) -> int:
    # How many different numbers the pattern's group matches at the start of names.
    return len({match[1] for name in shapes if (match := re.match(pattern, name))})


def _missing(name: str) -> Any:
    raise KeyError(name)
