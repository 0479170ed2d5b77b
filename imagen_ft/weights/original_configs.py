"""Which Stable Diffusion a file of the original layout holds: its parts' configs, by shapes."""

import re
from collections.abc import Mapping
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]

# That of all their attentions, but for the U-Net of 1.x, which has 8 heads everywhere.
_HEAD_WIDTH, _HEADS_1X = 64, 8
_SIZE_WIDTH = 256
_SIZES = 6


def unet_config(shapes: Shapes, pooled_width: int) -> dict[str, Any]:
    """Of a U-Net.

    Args:
        shapes: of its tensors by their original names.
        pooled_width: of the text that it is told besides; 0 where the file has no such encoder.

    Raises:
        KeyError: a tensor is missing, by its name.
    """
    halving = [
        int(match[1])
        for name in shapes
        if (match := re.fullmatch(r"input_blocks\.(\d+)\.0\.op\.weight", name))
    ]
    stride = min(halving, default=0) or _missing("input_blocks.3.0.op.weight")
    first = [1 + level * stride for level in range(len(halving) + 1)]
    widths = [shapes[f"input_blocks.{block}.0.in_layers.2.weight"][0] for block in first]
    depths = [_count(shapes, rf"input_blocks\.{b}\.1\.transformer_blocks\.(\d+)\.") for b in first]
    middle = "middle_block.1.transformer_blocks"
    # The middle has as many blocks as the coarsest level would have.
    blocks = [*(depth or 1 for depth in depths[:-1]), _count(shapes, rf"{middle}\.(\d+)\.")]
    # Linear projections came with 2.x, and heads of one width.
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
    """Of an auto-encoder.

    Args:
        shapes: of its tensors by their original names.
        scaling_factor: of its latents.

    Raises:
        KeyError: a tensor is missing, by its name.
    """
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
    """Of OpenAI's text encoder.

    Args:
        shapes: of its tensors by their original names.

    Raises:
        KeyError: a tensor is missing, by its name.
    """
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
    """Of open_clip's text encoder.

    Args:
        shapes: of its tensors by their original names.
        is_pooled: whether its pooled text is wanted, and its last layer; otherwise diffusers has
            the encoder without it: the states before it are what the U-Net attends to.

    Raises:
        KeyError: a tensor is missing, by its name.
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
        eos_token_id=2,  # pooled at the highest id, which is the end token's
        hidden_size=width,
        intermediate_size=mlp_width,
        max_position_embeddings=length,
        num_attention_heads=max(1, width // _HEAD_WIDTH),
        vocab_size=rows,
        **fields,
    )


def _count(shapes: Shapes, pattern: str) -> int:
    """How many numbers a pattern's group has at the beginning of a name, counted from 0."""
    return len({match[1] for name in shapes if (match := re.match(pattern, name))})


def _missing(name: str) -> Any:
    raise KeyError(name)
