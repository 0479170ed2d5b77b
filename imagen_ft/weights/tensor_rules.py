"""From our parameters' names to those in diffusers' and transformers' files, model by model.

Rules are regular expressions, applied one after the other.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from classifiers.clip.text_rules import CLIP_TEXT
from classifiers.models.clip_text import ClipTextEncoder
from imagen_ft.models.autoencoder import Autoencoder
from imagen_ft.models.latent_unet import LatentUNet
from imagen_ft.models.t5 import T5Encoder
from imagen_ft.models.unet import UNet
from launch.runtime.checkpoints.tensor_mapping import Rules

# Flax numbers modules in their names, PyTorch in lists: down_blocks_0_ is down_blocks.0.
_UNET: Rules = (
    (r"^(down_blocks|up_blocks)_(\d+)_([a-z]+)_(\d+)\.", r"\1.\2.\3.\4."),
    (r"^mid_block_([a-z]+)_(\d+)\.", r"mid_block.\1.\2."),
    (r"\.to_out_0\.", ".to_out.0."),
    (r"\.(kernel|scale)$", ".weight"),
)
_LATENT_UNET: Rules = (
    *_UNET[:2],
    (r"\.transformer_blocks_(\d+)\.", r".transformer_blocks.\1."),
    (r"\.(attn\d)_to_", r".\1.to_"),
    (r"\.ff_net_0_proj\.", ".ff.net.0.proj."),
    (r"\.ff_net_2\.", ".ff.net.2."),
    *_UNET[2:],
)
_AUTOENCODER: Rules = (
    (r"\.(down_blocks|up_blocks)_(\d+)_([a-z]+)_(\d+)\.", r".\1.\2.\3.\4."),
    (r"\.mid_block_([a-z]+)_(\d+)\.", r".mid_block.\1.\2."),
    *_UNET[2:],
)
# Names in files from before diffusers 0.17.
_OLD_ATTENTION: Rules = (
    (r"\.to_q\.", ".query."),
    (r"\.to_k\.", ".key."),
    (r"\.to_v\.", ".value."),
    (r"\.to_out\.0\.", ".proj_attn."),
)
_T5: Rules = (
    (r"^block_(\d+)\.SelfAttention_(\w)\.", r"encoder.block.\1.layer.0.SelfAttention.\2."),
    (r"^block_(\d+)\.layer_(\d)_layer_norm\.", r"encoder.block.\1.layer.\2.layer_norm."),
    (r"^block_(\d+)\.(wi_\d|wo)\.", r"encoder.block.\1.layer.1.DenseReluDense.\2."),
    (
        r"^relative_attention_bias\.embedding\.",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.",
    ),
    (r"^final_layer_norm\.", "encoder.final_layer_norm."),
    (r"\.(kernel|embedding)$", ".weight"),
)


# Files of old versions of transformers have this buffer.
_CLIP_COUNTERS = {
    "text_model.embeddings.position_ids": "text_model.embeddings.position_embedding.weight"
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """How files name a model's tensors."""

    rules: Rules  # from our names to the files'
    second_names: Rules = ()  # from those to names that a file may use as well, or instead
    # Integer tensors that files may have and nothing needs: each counts the rows of another tensor,
    # {counter: other}, from 0.
    counters: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def aliases(self, names: Iterable[str]) -> dict[str, str]:
        """Second names of the tensors that have one: {second: first}."""
        seconds = {}
        for name in names:
            second = name
            for pattern, replacement in self.second_names:
                second = re.sub(pattern, replacement, second)
            if second != name:
                seconds[second] = name
        return seconds


_LAYOUTS: dict[type, Layout] = {
    Autoencoder: Layout(_AUTOENCODER, _OLD_ATTENTION),
    # transformers 5 writes CLIPTextModel without the prefix.
    ClipTextEncoder: Layout(CLIP_TEXT, ((r"^text_model\.", ""),), _CLIP_COUNTERS),
    LatentUNet: Layout(_LATENT_UNET),
    # A T5 file holds its embedding twice, or under either name.
    T5Encoder: Layout(_T5, ((r"^shared\.", "encoder.embed_tokens."),)),
    UNet: Layout(_UNET),
}


def layout_of(model: Any) -> Layout:
    """The layout of a model that has public files; `KeyError` for others."""
    return _LAYOUTS[type(model)]
