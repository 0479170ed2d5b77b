"""From diffusers' names of Stable Diffusion's tensors to those in the authors' files.

Sources: the modules of the repositories CompVis/stable-diffusion (1.x),
Stability-AI/stablediffusion (2.x) and Stability-AI/generative-models (XL), and open_clip for its
text encoders.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from launch.runtime.checkpoints.tensor_mapping import Rules

# diffusers' names of modules -> the original ones.
_EMBEDDINGS = {"time": "time_embed", "add": "label_emb.0"}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_PIXEL_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_CLIP_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


class Origin(NamedTuple):
    """Where a tensor of diffusers is stored in an original file."""

    name: str  # of the tensor that holds it, without the part's prefix
    third: int | None = None  # 0 to 2: a third of its first axis (fused q, k, v); None: all of it
    is_transposed: bool = False


def unet_rules(layers: int, attention: Sequence[bool]) -> Rules:
    """Rules for a U-Net's tensors; `layers` is the number of resnets a level going down.

    The original numbers all blocks of a half in one row, and the modules inside a block.
    """
    stride = layers + 1  # blocks a level: its resnets, and the one that halves or doubles
    place = {"resnets": 0, "attentions": 1}  # number of the module inside its block
    return (
        (r"^conv_in\.", "input_blocks.0.0."),
        (r"^conv_norm_out\.", "out.0."),
        (r"^conv_out\.", "out.2."),
        (
            r"^(time|add)_embedding\.linear_(\d)\.",
            lambda match: f"{_EMBEDDINGS[match[1]]}.{2 * int(match[2]) - 2}.",
        ),
        (
            r"^down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.",
            lambda match: (
                f"input_blocks.{1 + int(match[1]) * stride + int(match[3])}.{place[match[2]]}."
            ),
        ),
        (
            r"^down_blocks\.(\d+)\.downsamplers\.0\.conv\.",
            lambda match: f"input_blocks.{(int(match[1]) + 1) * stride}.0.op.",
        ),
        (
            r"^mid_block\.(resnets|attentions)\.(\d+)\.",
            lambda match: f"middle_block.{2 * int(match[2]) + place[match[1]]}.",
        ),
        (
            r"^up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.",
            lambda match: (
                f"output_blocks.{int(match[1]) * stride + int(match[3])}.{place[match[2]]}."
            ),
        ),
        (
            # In the block of its level's last resnet, after that one's transformer if it has one.
            r"^up_blocks\.(\d+)\.upsamplers\.0\.",
            lambda match: (
                f"output_blocks.{int(match[1]) * stride + layers}."
                f"{1 + bool(attention[-1 - int(match[1])])}."
            ),
        ),
        (
            rf"^((?:in|out)put_blocks\.\d+\.0|middle_block\.[02])\.({'|'.join(_RESNET)})\.",
            lambda match: f"{match[1]}.{_RESNET[match[2]]}.",
        ),
    )


def autoencoder_rules(levels: int) -> Rules:
    """Rules for an auto-encoder's tensors; the original counts the decoder's levels backwards."""
    block = {"resnets": "block", "upsamplers.0": "upsample"}
    return (
        (r"\.conv_norm_out\.", ".norm_out."),
        (r"\.conv_shortcut\.", ".nin_shortcut."),
        (r"\.down_blocks\.(\d+)\.resnets\.", r".down.\1.block."),
        (r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".down.\1.downsample."),
        (
            r"\.up_blocks\.(\d+)\.(resnets|upsamplers\.0)\.",
            lambda match: f".up.{levels - 1 - int(match[1])}.{block[match[2]]}.",
        ),
        (r"\.mid_block\.resnets\.(\d)\.", lambda match: f".mid.block_{int(match[1]) + 1}."),
        (
            rf"\.mid_block\.attentions\.0\.({'|'.join(_PIXEL_ATTENTION)})\.",
            lambda match: f".mid.attn_1.{_PIXEL_ATTENTION[match[1]]}.",
        ),
    )


# From transformers' names to open_clip's. Files with OpenAI's encoder use transformers' names.
OPEN_CLIP_RULES: Rules = (
    (r"^text_projection\.weight", "text_projection"),
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (rf"\.({'|'.join(_CLIP_BLOCK)})\.", lambda match: f".{_CLIP_BLOCK[match[1]]}."),
    (r"\.self_attn\.([qkv])_proj\.", ".attn.in_proj_"),
)


def origin_of(name: str, rules: Rules) -> Origin:
    """Where the tensor that diffusers calls `name` is stored."""
    projection = re.search(r"\.self_attn\.([qkv])_proj\.", name)
    original = name
    for pattern, replacement in rules:
        original = re.sub(pattern, replacement, original)
    # open_clip fuses the three projections into one tensor, and transposes its text projection.
    third = "qkv".index(projection[1]) if projection and ".in_proj_" in original else None
    return Origin(original, third, original == "text_projection")
