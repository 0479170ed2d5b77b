"""Names of CLIP's tensors in other libraries' files.

transformers: CLIPModel and SiglipModel. openai: the state dict of OpenAI's models, which open_clip
uses for its CLIP too.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from classifiers.clip.text_rules import CLIP_TEXT
from classifiers.models.clip import Clip
from classifiers.models.clip_resnet import ClipResNet
from classifiers.weights.tensor_rules import ENDS, RESNET_TORCHVISION
from launch.errors import InputError
from launch.runtime.checkpoints.tensor_mapping import Rules, TensorMapping, tensor_mappings

TRANSFORMERS, OPENAI, OPEN_CLIP = CLIP_LAYOUTS = ("transformers", "openai", "open_clip")
# Whole numbers beside the weights, which say no more than the shapes do.
COUNTERS = (
    "position_ids",
    "num_batches_tracked",
    "input_resolution",
    "context_length",
    "vocab_size",
)
# Tensors that files may fuse into one, in this order.
_FUSED = ("query", "key", "value", "self_attn_q_proj", "self_attn_k_proj", "self_attn_v_proj")
_BLOCK = r"^block_(\d+)\."
_TEXT_BLOCK = r"^layers_(\d+)\."
# Rules are regular expressions from our names to theirs, applied one after the other.
_IMAGE_TRANSFORMERS: Rules = (
    *ENDS,
    (r"^probe_pool\.(query|key|value)\.(\w+)$", r"head.attention.in_proj_\2"),
    (r"^probe_pool\.out\.", "head.attention.out_proj."),
    (r"^probe_pool\.norm\.", "head.layernorm."),
    (r"^probe_pool\.mlp_(\d)\.", r"head.mlp.fc\1."),
    (r"^probe_pool\.", "head."),
    (rf"{_BLOCK}(q|k|v)\w+\.", r"encoder.layers.\1.self_attn.\2_proj."),
    (rf"{_BLOCK}out\.", r"encoder.layers.\1.self_attn.out_proj."),
    (rf"{_BLOCK}norm_(\d)\.", r"encoder.layers.\1.layer_norm\2."),
    (rf"{_BLOCK}mlp_(\d)\.", r"encoder.layers.\1.mlp.fc\2."),
    (r"^pre_norm\.", "pre_layrnorm."),  # misspelt in the files
    (r"^norm\.", "post_layernorm."),
    (r"^patch_embed\.", "embeddings.patch_embedding."),
    (r"^class_token$", "embeddings.class_embedding"),
    (r"^positions$", "embeddings.position_embedding.weight"),
)
_TEXT_TRANSFORMERS: Rules = ((r"^params\.", ""), *CLIP_TEXT)
_IN_OPENAI = r"transformer.resblocks.\1."
_IMAGE_OPENAI: Rules = (
    *ENDS,
    (rf"{_BLOCK}(?:query|key|value)\.(\w+)$", rf"{_IN_OPENAI}attn.in_proj_\2"),
    (rf"{_BLOCK}out\.", rf"{_IN_OPENAI}attn.out_proj."),
    (rf"{_BLOCK}norm_(\d)\.", rf"{_IN_OPENAI}ln_\2."),
    (rf"{_BLOCK}mlp_1\.", rf"{_IN_OPENAI}mlp.c_fc."),
    (rf"{_BLOCK}mlp_2\.", rf"{_IN_OPENAI}mlp.c_proj."),
    (r"^pre_norm\.", "ln_pre."),
    (r"^norm\.", "ln_post."),
    (r"^patch_embed\.", "conv1."),
    (r"^class_token$", "class_embedding"),
    (r"^positions$", "positional_embedding"),
)
_RESNET_OPENAI: Rules = (
    (r"\.attention_pool\.out\.", ".attnpool.c_proj."),
    (r"\.attention_pool\.(q|k|v)\w+\.", r".attnpool.\1_proj."),
    (r"\.attention_pool\.positions$", ".attnpool.positional_embedding"),
    (r"\.stem_conv_(\d)\.", lambda match: f".conv{int(match[1]) + 1}."),
    (r"\.stem_norm_(\d)\.", lambda match: f".bn{int(match[1]) + 1}."),
    *RESNET_TORCHVISION,
)
_TEXT_OPENAI: Rules = (
    *ENDS,
    (r"\.embedding$", ".weight"),
    (rf"{_TEXT_BLOCK}self_attn_[qkv]_proj\.(\w+)$", rf"{_IN_OPENAI}attn.in_proj_\2"),
    (rf"{_TEXT_BLOCK}self_attn_out_proj\.", rf"{_IN_OPENAI}attn.out_proj."),
    (rf"{_TEXT_BLOCK}layer_norm(\d)\.", rf"{_IN_OPENAI}ln_\2."),
    (rf"{_TEXT_BLOCK}mlp_fc1\.", rf"{_IN_OPENAI}mlp.c_fc."),
    (rf"{_TEXT_BLOCK}mlp_fc2\.", rf"{_IN_OPENAI}mlp.c_proj."),
    (r"^embeddings_token_embedding\.", "token_embedding."),
    (r"^embeddings_position_embedding\.weight$", "positional_embedding"),
    (r"^final_layer_norm\.", "ln_final."),
    (r"^text_projection\.weight$", "text_projection"),
)
# Projections that OpenAI stores as [in, out], as we do; PyTorch's layers are [out, in].
_AS_OURS = ("visual.proj", "text_projection")
# Scalars, which only SigLIP stores with a shape of [1].
_SCALARS = ("logit_scale", "logit_bias")


def clip_mappings(model: Clip, shapes: Mapping[str, Any], layout: str) -> dict[str, TensorMapping]:
    """What a file in `layout` holds of a model, by the file's names; `shapes` may be variables.

    Raises:
        InputError: the layout has no such model.
    """
    check_layout(model, layout)
    transformers = layout == TRANSFORMERS
    resnet = isinstance(model.image, ClipResNet)
    # 1. The rules of both towers.
    if transformers:
        image, text = _IMAGE_TRANSFORMERS, _TEXT_TRANSFORMERS
        if model.text.pool == "last":
            text = (*text, (r"^text_projection\.", "text_model.head."))
    else:
        image, text = _RESNET_OPENAI if resnet else _IMAGE_OPENAI, _TEXT_OPENAI
    # 2. Towers, then what is beside them: projection, scale, bias.
    mappings = _tower("image", shapes, image, "vision_model." if transformers else "visual.")
    mappings |= _tower("text", shapes, text, "")
    projection = "visual_projection.weight" if transformers else "visual.proj"
    beside = {k: v for k, v in shapes["params"].items() if k not in ("image", "text")}
    rules = (*ENDS, (r"^image_projection\.weight$", projection))
    mappings |= tensor_mappings({"params": beside}, rules)
    return {
        name: _as_in_file(name, mapping, layout, model.sigmoid)
        for name, mapping in mappings.items()
    }


def check_layout(model: Clip, layout: str) -> None:
    """Raises InputError where a layout has no such model."""
    siglip = model.sigmoid or model.text.pool == "last"
    if layout == TRANSFORMERS:
        _need(not isinstance(model.image, ClipResNet), layout, "a ResNet as its image tower")
        return
    _need(not siglip and model.text.causal, layout, "SigLIP's towers or head")
    activations = {model.text.activation, getattr(model.image, "activation", model.text.activation)}
    if layout == OPENAI:
        _need(activations == {"quick_gelu"}, layout, f"the activation {max(activations)}")
    _need(len(activations) == 1, layout, "two activations")


def _need(has_model: bool, layout: str, feature: str) -> None:
    if not has_model:
        raise InputError(
            f"the {layout} layout cannot hold a CLIP with {feature}; choose another layout"
        )


def _tower(
    tower: str, shapes: Mapping[str, Any], rules: Rules, prefix: str
) -> dict[str, TensorMapping]:
    """The mappings of one tower, with its paths in the whole model."""
    # Rules see paths without the tower's name; afterwards it is put back.
    own = {collection: tree[tower] for collection, tree in shapes.items() if tower in tree}
    mappings = {}
    for name, mapping in tensor_mappings(own, rules, _FUSED).items():
        paths = (path.partition(".") for path in mapping.paths)
        whole = tuple(f"{collection}.{tower}.{rest}" for collection, _, rest in paths)
        mappings[prefix + name] = dataclasses.replace(mapping, paths=whole)
    return mappings


def _as_in_file(name: str, mapping: TensorMapping, layout: str, sigmoid: bool) -> TensorMapping:
    if name in _AS_OURS and layout != TRANSFORMERS:
        return dataclasses.replace(mapping, axes=(0, 1))
    if name in _SCALARS:
        return mapping if sigmoid else dataclasses.replace(mapping, axes=())
    path = mapping.paths[0]
    # Theirs lack the leading axes of 1 that ours have for broadcasting.
    if path.endswith(".class_token"):
        return dataclasses.replace(mapping, axes=(2,))
    if path.endswith(".image.positions"):
        return dataclasses.replace(mapping, axes=(1, 2))
    return mapping
