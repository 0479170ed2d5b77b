"""What the small files beside weights say: the model's fields, its pixels, its image size."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath

from classifiers.models import presets
from classifiers.models.efficientnet_lite import EfficientNetLite
from classifiers.models.presets import Classifier
from classifiers.models.resnet import ResNet
from classifiers.models.resnet_rs import ResNetRS
from classifiers.models.vit import ViT
from classifiers.weights.positions import trained_size
from classifiers.weights.preprocessing import (
    CONFIG,
    PREPROCESSOR,
    described,
    folder_of,
    preprocessing,
    read_file,
    scaling,
    timm_config,
    whole,
)
from classifiers.weights.weight_files import find_layout, open_tensors
from launch.errors import InputError
from launch.files import write_json
from launch.runtime.checkpoints.safetensors_io import Tensor

# Fields of transformers' configs of which we compute one value: (their default, ours).
_FIXED = {
    "vit": {"hidden_act": ("gelu", "gelu"), "qkv_bias": (True, True)},
    "resnet": {
        "hidden_act": ("relu", "relu"),
        "downsample_in_first_stage": (False, False),
        "downsample_in_bottleneck": (False, False),
    },
}
_FIXED["deit"] = _FIXED["vit"]
# By our field: transformers' name, and its default where the file has none.
_VIT_FIELDS = {
    "width": ("hidden_size", 768),
    "depth": ("num_hidden_layers", 12),
    "num_heads": ("num_attention_heads", 12),
    "patch_size": ("patch_size", 16),
    "mlp_dim": ("intermediate_size", 3072),
    "norm_eps": ("layer_norm_eps", 1e-12),
}


def build(
    path: epath.PathLike, name: str | None = None, **overrides: Any
) -> tuple[Classifier, int]:
    """The model of weights, and its image size: the preset's, else that of the weights.

    `name` is a preset or a module; a config.json of transformers needs none. Of `overrides`,
    `num_classes` is by default that of the weights' head, and `pixels` what the files beside them
    say.

    Raises:
        InputError: there are no such weights, the model is not implemented, or nothing says what it
            is.
    """
    # 1. The module and its fields: from --model, else from transformers' config.json.
    tensors = open_tensors(path)
    folder = folder_of(path)
    config = read_file(folder / CONFIG)
    timm_config(folder)
    fields: dict[str, Any] = {}
    if name is None and "model_type" not in config:
        raise InputError(f"{path}: {CONFIG} has no model of transformers; set one with --model")
    if name is None:
        where = folder / CONFIG
        name, fields = _from_transformers(config, tensors, where)
    # 2. What no shape tells: how pixels were scaled.
    layout = find_layout(tensors, path)
    if "pixels" not in overrides:
        fields["pixels"] = scaling(folder, path)
    fields |= overrides
    # 3. The model; its size from the preset, the positions, or the files, in this order.
    num_classes = fields.pop("num_classes", None) or _num_classes(tensors, path)
    model = presets.make(name, num_classes, **fields)
    size = presets.PRESETS[name].size if name in presets.PRESETS else None
    size = size or trained_size(tensors, model)
    return model, size or preprocessing(folder, layout).size or 224


def write_configs(
    folder: Path,
    model: Classifier,
    image_shape: tuple[int, int, int],
    layout: str,
    evaluation: Mapping[str, Any] | None = None,
) -> None:
    """Writes what other libraries need beside `weight_files.save`'s file.

    `image_shape` is [h, w, c], square; all layouts but 'transformers' get timm's config.json.
    `evaluation` is `config.evaluation`, None for whole images.
    """
    size, _, channels = image_shape
    images = described(evaluation or {}, model.pixels, image_shape, layout)
    if layout != "transformers":
        write_json(folder / CONFIG, {"num_classes": model.num_classes, "pretrained_cfg": images})
        return
    # transformers has no EfficientNet-Lite: `tensor_rules` has refused it.
    assert not isinstance(model, EfficientNetLite)
    fields = _vit_config(model, size) if isinstance(model, ViT) else _resnet_config(model)
    # transformers counts classes by their labels.
    labels = [f"LABEL_{index}" for index in range(model.num_classes)]
    fields["id2label"] = {str(index): label for index, label in enumerate(labels)}
    fields["label2id"] = {label: index for index, label in enumerate(labels)}
    write_json(folder / CONFIG, {**fields, "dtype": "float32", "num_channels": channels})
    write_json(folder / PREPROCESSOR, images)


def _from_transformers(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], where: Path
) -> tuple[str, dict[str, Any]]:
    kind = config["model_type"]
    if not isinstance(kind, str) or kind not in _FIXED:
        raise InputError(f"{where}: model_type must be one of {', '.join(_FIXED)}, got {kind!r}")
    # Fields that we do not have must be at the value that we compute.
    for field, (default, ours) in _FIXED[kind].items():
        if (value := config.get(field, default)) != ours:
            raise InputError(
                f"{where}: {field} must be {ours!r}, the only one implemented, got {value!r}"
            )
    if kind == "resnet":
        return "resnet", _resnet_fields(config, where)
    fields = {ours: config.get(theirs, default) for ours, (theirs, default) in _VIT_FIELDS.items()}
    for ours, value in fields.items():
        if ours != "norm_eps":
            whole(value, _VIT_FIELDS[ours][0], where)
    if kind == "deit":
        # DeiT's config is the same with and without the head of the distillation token.
        heads = any(name.startswith("distillation_classifier.") for name in tensors)
        fields["distillation"] = "heads" if heads else "token"
    return "vit", fields


def _resnet_fields(config: Mapping[str, Any], where: Path) -> dict[str, Any]:
    bottleneck = config.get("layer_type", "bottleneck") == "bottleneck"
    depths = config.get("depths", (3, 4, 6, 3))
    width = whole(config.get("embedding_size", 64), "embedding_size", where)
    # Ours double from stage to stage.
    widths = [width * (4 if bottleneck else 1) * 2**stage for stage in range(len(depths))]
    hidden_sizes = list(config.get("hidden_sizes", (256, 512, 1024, 2048)))
    if hidden_sizes != widths:
        raise InputError(
            f"{where}: hidden_sizes must be {widths}, the only ones implemented, got {hidden_sizes}"
        )
    return dict(stage_sizes=tuple(depths), width=width, bottleneck=bottleneck)


def _vit_config(model: ViT, size: int) -> dict[str, Any]:
    fields = {theirs: getattr(model, ours) for ours, (theirs, _) in _VIT_FIELDS.items()}
    fields["intermediate_size"] = model.mlp_dim or 4 * model.width
    kind, name = ("deit", "DeiT") if model.distillation else ("vit", "ViT")
    architecture = f"{name}ForImageClassification"
    architecture += "WithTeacher" if model.distillation == "heads" else ""
    # Only this one of transformers' rates is ours: attention's weights are not dropped here.
    rates = {"hidden_dropout_prob": model.dropout, "attention_probs_dropout_prob": 0.0}
    names = {"architectures": [architecture], "model_type": kind, "image_size": size}
    return {**fields, **rates, **names, "hidden_act": "gelu", "qkv_bias": True}


def _resnet_config(model: ResNet | ResNetRS) -> dict[str, Any]:
    wide = model.width * (4 if model.bottleneck else 1)
    return {
        "architectures": ["ResNetForImageClassification"],
        "model_type": "resnet",
        "depths": list(model.stage_sizes),
        "embedding_size": model.width,
        "hidden_sizes": [wide * 2**stage for stage in range(len(model.stage_sizes))],
        "layer_type": "bottleneck" if model.bottleneck else "basic",
        "hidden_act": "relu",
    }


def _num_classes(tensors: Mapping[str, Tensor], where: Any) -> int:
    # The bias of every layout's head; DeiT has two heads of one size.
    for name in (
        "classifier.bias",
        "cls_classifier.bias",
        "classifier.1.bias",
        "head.bias",
        "fc.bias",
        "_fc.bias",
    ):
        if name in tensors:
            return tensors[name].shape[0]
    raise InputError(f"{where}: the weights have no head; pass --num_classes for a new one")
