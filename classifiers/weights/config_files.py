"""What the small files beside weights say: the model's fields, its pixels, its image size."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from classifiers.models import presets
from classifiers.models.efficientnet_lite import EfficientNetLite
from classifiers.models.presets import Classifier
from classifiers.models.resnet import ResNet
from classifiers.models.resnet_rs import ResNetRS
from classifiers.models.vit import ViT
from classifiers.weights.positions import trained_size
from classifiers.weights.weight_files import find_layout, open_tensors
from launch.errors import InputError
from launch.files import read_object, write_json
from launch.runtime.checkpoints.safetensors_io import Tensor
from launch.runtime.layers.layers import PIXELS

# As DeiT and most others are evaluated.
CROP_RATIO = 0.875
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
# Fields of transformers' configs with one value that we compute: (its default, ours).
_FIXED = {
    "vit": {"hidden_act": ("gelu", "gelu"), "qkv_bias": (True, True)},
    "resnet": {
        "hidden_act": ("relu", "relu"),
        "downsample_in_first_stage": (False, False),
        "downsample_in_bottleneck": (False, False),
    },
}
_FIXED["deit"] = _FIXED["vit"]
# Our field and transformers', with its default where the file has none.
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
    """The model of weights, and the size of its images: the preset's, else that of the weights.

    Args:
        path: see `weight_files.open_tensors`; a folder may hold a config.json of transformers or
            timm.
        name: of a preset or module. A config.json of transformers needs none.
        **overrides: fields of the model; `num_classes` is otherwise that of the weights' head, and
            `pixels` what preprocessor_config.json or timm's config.json say.

    Raises:
        InputError: no such weights, a model that is not implemented, or something is not known:
            the line names it.
    """
    tensors = open_tensors(path)
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    config = _read(folder / CONFIG)
    timm = _timm(config, folder / CONFIG)
    fields: dict[str, Any] = {}
    if name is None and "model_type" not in config:
        raise InputError(f"{path}: {CONFIG} names no model of transformers: name one with --model")
    if name is None:
        where = folder / CONFIG
        name, fields = _from_transformers(config, tensors, where)
    find_layout(tensors, path)
    if "pixels" not in overrides:
        fields["pixels"] = _pixels(timm or _read(folder / PREPROCESSOR), path)
    fields |= overrides
    num_classes = fields.pop("num_classes", None) or _num_classes(tensors, path)
    model = presets.make(name, num_classes, **fields)
    size = presets.PRESETS[name].size if name in presets.PRESETS else None
    return model, size or trained_size(tensors, model) or _input_size(timm, folder / CONFIG)


def crop_ratio(path: epath.PathLike) -> float:
    """The share of an image's side that the weights were evaluated on, 0.875 where no file says it.

    Args:
        path: as for `build`.
    """
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    timm = _timm(_read(folder / CONFIG), folder / CONFIG)
    ratio = timm.get("crop_pct") or _read(folder / PREPROCESSOR).get("crop_pct") or CROP_RATIO
    if not isinstance(ratio, int | float) or not 0 < ratio <= 1:
        raise InputError(f"{folder}: crop_pct is {ratio!r}, not a number in (0, 1]")
    return ratio


def write_configs(
    folder: Path, model: Classifier, image_shape: tuple[int, int, int], layout: str
) -> None:
    """Writes what others need beside weights that `weight_files.save` writes.

    Args:
        folder: of the weights.
        model: the network.
        image_shape: [h, w, c] of its images, which are square.
        layout: of `tensor_rules.LAYOUTS`; users of all but 'transformers' get timm's.
    """
    size, _, channels = image_shape
    mean, std = (list(values)[:channels] for values in PIXELS[model.pixels])
    if layout != "transformers":
        images = {"mean": mean, "std": std, "input_size": [channels, size, size]}
        write_json(folder / CONFIG, {"num_classes": model.num_classes, "pretrained_cfg": images})
        return
    # transformers has no EfficientNet-Lite, which `tensor_rules` says.
    assert not isinstance(model, EfficientNetLite)
    fields = _vit_config(model, size) if isinstance(model, ViT) else _resnet_config(model)
    labels = [f"LABEL_{index}" for index in range(model.num_classes)]
    fields["id2label"] = {str(index): label for index, label in enumerate(labels)}
    fields["label2id"] = {label: index for index, label in enumerate(labels)}
    write_json(folder / CONFIG, {**fields, "dtype": "float32", "num_channels": channels})
    preprocessor = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": size, "width": size},
        "rescale_factor": 1 / 255,
        "image_mean": mean,
        "image_std": std,
    }
    switches = dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), True)
    write_json(folder / PREPROCESSOR, {**preprocessor, **switches, "resample": 3})


def _from_transformers(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], where: Path
) -> tuple[str, dict[str, Any]]:
    kind = config["model_type"]
    if not isinstance(kind, str) or kind not in _FIXED:
        raise InputError(f"{where}: model_type is {kind!r}; known are {', '.join(_FIXED)}")
    for field, (default, ours) in _FIXED[kind].items():
        if (value := config.get(field, default)) != ours:
            raise InputError(f"{where}: {field} is {value!r}, only {ours!r} is implemented")
    if kind == "resnet":
        return "resnet", _resnet_fields(config, where)
    fields = {ours: config.get(theirs, default) for ours, (theirs, default) in _VIT_FIELDS.items()}
    for ours, value in fields.items():
        if ours != "norm_eps":
            _whole(value, _VIT_FIELDS[ours][0], where)
    if kind == "deit":
        heads = any(name.startswith("distillation_classifier.") for name in tensors)
        fields["distillation"] = "heads" if heads else "token"
    return "vit", fields


def _resnet_fields(config: Mapping[str, Any], where: Path) -> dict[str, Any]:
    bottleneck = config.get("layer_type", "bottleneck") == "bottleneck"
    depths = config.get("depths", (3, 4, 6, 3))
    width = _whole(config.get("embedding_size", 64), "embedding_size", where)
    widths = [width * (4 if bottleneck else 1) * 2**stage for stage in range(len(depths))]
    hidden_sizes = list(config.get("hidden_sizes", (256, 512, 1024, 2048)))
    if hidden_sizes != widths:
        raise InputError(f"{where}: hidden_sizes is {hidden_sizes}, only {widths} is implemented")
    return dict(stage_sizes=tuple(depths), width=width, bottleneck=bottleneck)


def _vit_config(model: ViT, size: int) -> dict[str, Any]:
    fields = {theirs: getattr(model, ours) for ours, (theirs, _) in _VIT_FIELDS.items()}
    fields["intermediate_size"] = model.mlp_dim or 4 * model.width
    kind, name = ("deit", "DeiT") if model.distillation else ("vit", "ViT")
    architecture = f"{name}ForImageClassification"
    architecture += "WithTeacher" if model.distillation == "heads" else ""
    # Of transformers' rates this one is ours; attention's weights are not dropped here.
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


def _read(path: Path) -> dict[str, Any]:
    return read_object(path) if path.exists() else {}


def _timm(config: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """What timm says of the weights, if it wrote the file."""
    written = config.get("pretrained_cfg") or {}
    if not isinstance(written, dict):
        raise InputError(f"{where}: pretrained_cfg is {written!r}, not an object")
    return written


def _input_size(timm: Mapping[str, Any], where: Path) -> int:
    size = timm.get("input_size") or [224]
    return _whole(size[-1] if isinstance(size, list) else size, "input_size", where)


def _whole(value: Any, field: str, where: Path) -> int:
    if not isinstance(value, int) or value < 1:
        raise InputError(f"{where}: {field} is {value!r}, not a positive whole number")
    return value


def _pixels(config: Mapping[str, Any], where: Any) -> str:
    mean, std = (config.get(f"image_{key}", config.get(key)) for key in ("mean", "std"))
    if mean is None or std is None:
        raise InputError(
            f"{where}: nothing beside the weights says how pixels were scaled: say it with "
            f"--pixels ({', '.join(PIXELS)})"
        )
    for values in (mean, std):
        if not isinstance(values, list) or not all(isinstance(x, int | float) for x in values):
            raise InputError(f"{where}: pixels were scaled by {values!r}, not a list of numbers")
    for name, scaling in PIXELS.items():
        statistics = np.asarray(scaling)[:, : len(mean)]
        if np.shape(mean) == np.shape(std) and np.allclose((mean, std), statistics, atol=1e-4):
            return name
    raise InputError(
        f"{where}: pixels were scaled by mean {mean} and deviation {std}; known are "
        f"{', '.join(PIXELS)}"
    )


def _num_classes(tensors: Mapping[str, Tensor], where: Any) -> int:
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
    raise InputError(f"{where}: the weights have no head: say --num_classes, for a new one")
