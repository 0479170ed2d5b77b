"""Names of a classifier's tensors in other libraries' files: one table of rules per layout.

transformers: ViTForImageClassification, DeiTForImageClassification (and WithTeacher),
ResNetForImageClassification, as they are on disk. timm: VisionTransformer and its subclasses.
torchvision: ResNet, whose names timm uses too. efficientnet: EfficientNet-PyTorch, and packages
with its weights.
"""

from classifiers.models.efficientnet_lite import EfficientNetLite
from classifiers.models.presets import Classifier
from classifiers.models.resnet import ResNet
from classifiers.models.vit import ViT
from launch.errors import InputError
from launch.runtime.checkpoints.tensor_mapping import Rules

LAYOUTS = ("transformers", "timm", "torchvision", "efficientnet")
# A count that PyTorch's batch norms keep; it is written as 0, and never read.
COUNTER = "num_batches_tracked"

# Rules are regular expressions from our names to theirs, applied one after the other.
ENDS: Rules = (
    (r"^(params|batch_stats)\.", ""),
    (r"\.(kernel|scale)$", ".weight"),
    (r"\.(mean|var)$", r".running_\1"),  # batch norms: ours are a collection, theirs buffers
)
_BLOCK = r"^block_(\d+)\."


def _vit_transformers(model: ViT) -> Rules:
    prefix = "deit" if model.distillation else "vit"
    layer = rf"{prefix}.encoder.layer.\1."
    return (
        *ENDS,
        (rf"{_BLOCK}(query|key|value)\.", rf"{layer}attention.attention.\2."),
        (rf"{_BLOCK}out\.", f"{layer}attention.output.dense."),
        (rf"{_BLOCK}norm_1\.", f"{layer}layernorm_before."),
        (rf"{_BLOCK}norm_2\.", f"{layer}layernorm_after."),
        (rf"{_BLOCK}mlp_1\.", f"{layer}intermediate.dense."),
        (rf"{_BLOCK}mlp_2\.", f"{layer}output.dense."),
        (r"^norm\.", f"{prefix}.layernorm."),
        (r"^patch_embed\.", f"{prefix}.embeddings.patch_embeddings.projection."),
        (r"^class_token$", f"{prefix}.embeddings.cls_token"),
        (r"^distillation_token$", f"{prefix}.embeddings.distillation_token"),
        (r"^positions$", f"{prefix}.embeddings.position_embeddings"),
        (r"^head\.", "cls_classifier." if model.distillation == "heads" else "classifier."),
        (r"^head_dist\.", "distillation_classifier."),
    )


_VIT_TIMM: Rules = (
    *ENDS,
    # Three of ours become one of theirs: see FUSED.
    (rf"{_BLOCK}(query|key|value)\.", r"blocks.\1.attn.qkv."),
    (rf"{_BLOCK}out\.", r"blocks.\1.attn.proj."),
    (rf"{_BLOCK}norm_(\d)\.", r"blocks.\1.norm\2."),
    (rf"{_BLOCK}mlp_(\d)\.", r"blocks.\1.mlp.fc\2."),
    (rf"{_BLOCK}scale_(\d)$", r"blocks.\1.ls\2.gamma"),
    (r"^patch_embed\.", "patch_embed.proj."),
    (r"^class_token$", "cls_token"),
    (r"^distillation_token$", "dist_token"),
    (r"^positions$", "pos_embed"),
)
_STAGE = r"^stage_(\d+)_block_(\d+)\."
_RESNET_TRANSFORMERS: Rules = (
    *ENDS,
    (_STAGE, r"resnet.encoder.stages.\1.layers.\2."),
    (r"\.(conv|norm)_(\d)\.", r".layer.\2.\1."),
    (r"\.shortcut_(conv|norm)\.", r".shortcut.\1."),
    (r"^stem_(conv|norm)\.", r"resnet.embedder.embedder.\1."),
    (r"\.conv\.", ".convolution."),
    (r"\.norm\.", ".normalization."),
    (r"^head\.", "classifier.1."),
)
RESNET_TORCHVISION: Rules = (
    *ENDS,
    # torchvision counts stages, convolutions and norms from 1.
    (_STAGE, lambda match: f"layer{int(match[1]) + 1}.{match[2]}."),
    (r"\.conv_(\d)\.", lambda match: f".conv{int(match[1]) + 1}."),
    (r"\.norm_(\d)\.", lambda match: f".bn{int(match[1]) + 1}."),
    (r"\.shortcut_conv\.", ".downsample.0."),
    (r"\.shortcut_norm\.", ".downsample.1."),
    (r"^stem_conv\.", "conv1."),
    (r"^stem_norm\.", "bn1."),
    (r"^head\.", "fc."),
)
_EFFICIENTNET: Rules = (
    *ENDS,
    (r"\.expand_norm\.", "._bn0."),
    (r"\.depthwise_norm\.", "._bn1."),
    (r"\.project_norm\.", "._bn2."),
    (r"\.(expand|depthwise|project)_conv\.", r"._\1_conv."),
    (_BLOCK, r"_blocks.\1."),
    (r"^(stem|head)_conv\.", r"_conv_\1."),
    (r"^stem_norm\.", "_bn0."),
    (r"^head_norm\.", "_bn1."),
    (r"^head\.", "_fc."),
)
# timm stores these as one tensor, in this order.
FUSED = ("query", "key", "value")


def tensor_rules(model: Classifier, layout: str) -> Rules:
    """Rules from our names to a layout's; raises InputError if it has no such model."""
    if isinstance(model, ViT):
        if layout == "transformers":
            plain = model.pool == "token" and model.positions == "learned"
            _need(
                plain and model.layer_scale is None,
                layout,
                "this pooling, these positions or layer scale",
            )
            return _vit_transformers(model)
        _need(layout == "timm", layout, "a vision transformer")
        _need(model.distillation != "token", layout, "a distillation token without its head")
        return _VIT_TIMM
    if isinstance(model, EfficientNetLite):
        _need(layout == "efficientnet", layout, "inverted bottlenecks")
        return _EFFICIENTNET
    _need(layout != "efficientnet", layout, "residual blocks")
    _need(isinstance(model, ResNet), layout, "squeeze-and-excitation")
    _need(not model.auxiliary_batch_norm, layout, "batch norms for synthetic images")
    _need(not model.small_stem, layout, "a stem for small images")
    return _RESNET_TRANSFORMERS if layout == "transformers" else RESNET_TORCHVISION


def _need(has_model: bool, layout: str, feature: str) -> None:
    if not has_model:
        raise InputError(
            f"the {layout} layout cannot hold a model with {feature}; choose another layout"
        )
