"""What the files beside CLIP's weights say: the model's fields, and how images are prepared."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from classifiers.models import clip
from classifiers.models.clip import Clip
from classifiers.models.vit import ViT
from classifiers.weights.clip_rules import OPEN_CLIP, OPENAI, TRANSFORMERS
from classifiers.weights.preprocessing import (
    CONFIG,
    PREPROCESSOR,
    Preprocessing,
    described,
    preprocessing,
    read_file,
    scaling,
    whole,
)
from launch.errors import InputError
from launch.files import write_json
from launch.runtime.checkpoints.safetensors_io import Tensor
from launch.runtime.layers.layers import PIXELS

OPEN_CLIP_CONFIG = "open_clip_config.json"
_HEAD_WIDTH = 64  # channels a head, where only shapes say how many heads there are
# By our field: transformers' name, and its default where the file has none.
_VIT = {
    "width": ("hidden_size", 768),
    "mlp_dim": ("intermediate_size", 3072),
    "depth": ("num_hidden_layers", 12),
    "num_heads": ("num_attention_heads", 12),
}
_TEXT = {
    "width": ("hidden_size", 512),
    "mlp_width": ("intermediate_size", 2048),
    "num_layers": ("num_hidden_layers", 12),
    "num_heads": ("num_attention_heads", 8),
    "vocab_size": ("vocab_size", 49408),
    "max_length": ("max_position_embeddings", 77),
}
# SigLIP's defaults, which its files leave out.
_SIGLIP_TEXT = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "vocab_size": 32000,
    "max_position_embeddings": 64,
}
# By transformers' name.
_NAMES_OF_ACTIVATIONS = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
}
_ACTIVATIONS_BY_NAME = {ours: theirs for theirs, ours in _NAMES_OF_ACTIVATIONS.items()}
# Fields of open_clip that are implemented, by section.
_OPEN_CLIP_FIELDS = {
    "model_cfg": ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu"),
    "vision_cfg": ("image_size", "layers", "width", "head_width", "patch_size", "mlp_ratio"),
    "text_cfg": ("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"),
}


@dataclasses.dataclass(frozen=True)
class Described:
    """What files say about weights."""

    model: Clip
    size: int  # of its images, pixels each way
    images: Preprocessing  # how images are brought to that size


def read(folder: Path, tensors: Mapping[str, Tensor], layout: str, where: Any) -> Described:
    """The model of weights in `layout`, from the files beside them; `where` is for messages.

    Raises:
        InputError: they are of another family, ask for what is not implemented, or contradict each
            other.
    """
    if layout == TRANSFORMERS:
        return _of_transformers(folder)
    _check_family(tensors, where)
    config = read_file(folder / OPEN_CLIP_CONFIG)
    # OpenAI's files say nothing of the activation: it is always quick_gelu. open_clip's config
    # beside them may say otherwise: then the weights are not OpenAI's.
    if layout == OPENAI:
        if config.get("model_cfg", {}).get("quick_gelu", True) is not True:
            raise InputError(
                f"{folder / OPEN_CLIP_CONFIG}: quick_gelu must be true for OpenAI's weights, got "
                f"{config['model_cfg']['quick_gelu']!r}; pass --from=open_clip:{where}"
            )
        return _of_tensors(tensors)
    if not config:
        raise InputError(
            f"{where}: {OPEN_CLIP_CONFIG}, which has the activation, is missing next to these "
            "open_clip weights; copy it there, or pass --from=openai if they are OpenAI's"
        )
    return _of_open_clip(config, folder / OPEN_CLIP_CONFIG)


def write(folder: Path, described_: Described, evaluation: Mapping[str, Any], layout: str) -> None:
    """Writes the files beside weights; OpenAI's layout has none."""
    model, size = described_.model, described_.size
    if layout == TRANSFORMERS:
        images = described(evaluation, model.image.pixels, (size, size, 3), layout)
        kind = "SiglipImageProcessor" if model.sigmoid else "CLIPImageProcessor"
        write_json(folder / CONFIG, _transformers_config(model, size))
        write_json(folder / PREPROCESSOR, {**images, "image_processor_type": kind})
    if layout == OPEN_CLIP:
        mean, std = (list(values) for values in PIXELS[model.image.pixels])
        images = {"mean": mean, "std": std, "interpolation": "bicubic", "resize_mode": "shortest"}
        fields = {"model_cfg": _open_clip_config(model, size), "preprocess_cfg": images}
        write_json(folder / OPEN_CLIP_CONFIG, fields)


def check_preset(model: Clip, name: str, where: Any) -> None:
    """Compares weights with the preset that they are said to be.

    Raises:
        InputError: there is no such preset, or a field differs; the message names it.
    """
    expected = clip.make({"name": name, "dtype": model.dtype})
    for part, ours, theirs in (
        ("image.", model.image, expected.image),
        ("text.", model.text, expected.text),
        ("", model, expected),
    ):
        if type(ours) is not type(theirs):
            raise InputError(
                f"{where}: the image tower is not that of {name}; choose another --model"
            )
        for field in dataclasses.fields(ours):
            # Not of the network, or told differently by each layout, or compared on their own.
            if field.name in ("parent", "name", "image", "text", "end_token", "mlp_dim"):
                continue
            got, needed = getattr(ours, field.name), getattr(theirs, field.name)
            if got != needed:
                raise InputError(
                    f"{where}: {part}{field.name} must be {needed!r} for --model={name}, got "
                    f"{got!r}; choose the model that these weights belong to"
                )


def _of_transformers(folder: Path) -> Described:
    where = folder / CONFIG
    config = read_file(where)
    kind = config.get("model_type")
    if kind not in ("clip", "siglip"):
        raise InputError(
            f"{where}: model_type must be clip or siglip, got {kind!r}; use a folder of CLIP "
            "weights"
        )
    # 1. The image tower. Defaults are those of transformers' config classes.
    siglip = kind == "siglip"
    vision, text = (config.get(f"{part}_config") or {} for part in ("vision", "text"))
    eps = 1e-6 if siglip else 1e-5
    image = _fields(vision, _VIT, where)
    image |= dict(
        name="vit",
        patch_size=whole(vision.get("patch_size", 16 if siglip else 32), "patch_size", where),
        activation=_activation(vision, siglip, where),
        norm_eps=_number(vision.get("layer_norm_eps", eps), "layer_norm_eps", where),
        pixels=scaling(folder, where),
    )
    # 2. The text tower.
    own = _fields({**_SIGLIP_TEXT, **text} if siglip else text, _TEXT, where)
    own |= dict(
        activation=_activation(text, siglip, where),
        norm_eps=_number(text.get("layer_norm_eps", eps), "layer_norm_eps", where),
    )
    # 3. Where the two families differ.
    width = 0
    if siglip:
        image |= dict(pool="probe")
        projection = text.get("projection_size") or own["width"]
        own |= dict(projection_width=projection, projection_bias=True, pool="last", causal=False)
        if vision.get("vision_use_head", True) is not True:
            raise InputError(
                f"{where}: vision_use_head must be true, the only one implemented, got false; use "
                "a SigLIP that has it"
            )
    else:
        image |= dict(pre_norm=True, patch_bias=False)
        width = whole(config.get("projection_dim", 512), "projection_dim", where)
        end = text.get("eos_token_id", 49407)
        own |= dict(projection_width=width, end_token=whole(end, "eos_token_id", where))
    model = clip.make(dict(image=image, text=own, projection_width=width, sigmoid=siglip))
    # Must agree with the preprocessor's.
    size = whole(vision.get("image_size", 224), "image_size", where)
    return _checked(model, size, preprocessing(folder, "timm"), where)


def _of_tensors(tensors: Mapping[str, Tensor]) -> Described:
    # OpenAI has no config: shapes say all but the heads, which are 64 wide in all its models.
    depth = _count(tensors, "transformer.resblocks.")
    shape = {name: tensor.shape for name, tensor in tensors.items()}
    text_width, out_width = shape["text_projection"]
    text = dict(
        width=text_width,
        mlp_width=shape["transformer.resblocks.0.mlp.c_fc.weight"][0],
        num_layers=depth,
        num_heads=max(1, text_width // _HEAD_WIDTH),
        vocab_size=shape["token_embedding.weight"][0],
        max_length=shape["positional_embedding"][0],
        projection_width=out_width,
    )
    if "visual.attnpool.positional_embedding" in shape:
        # The third convolution of the stem gives the width of the first stage.
        width = shape["visual.conv3.weight"][0]
        stages = tuple(
            len({name.split(".")[2] for name in shape if name.startswith(f"visual.layer{stage}.")})
            for stage in (1, 2, 3, 4)
        )
        tokens = shape["visual.attnpool.positional_embedding"][0]
        # Positions are of the mean and of the last stage's pixels, at 1 / 32 of the image.
        size = math.isqrt(tokens - 1) * 2 ** (len(stages) + 1)
        image = dict(name="resnet", stage_sizes=stages, width=width, out_width=out_width)
        return _openai(image, text, 0, size)
    width, _, _, patch_size = shape["visual.conv1.weight"]
    image = dict(
        width=width,
        mlp_dim=shape["visual.transformer.resblocks.0.mlp.c_fc.weight"][0],
        depth=_count(tensors, "visual.transformer.resblocks."),
        num_heads=max(1, width // _HEAD_WIDTH),
        patch_size=patch_size,
    )
    # Positions are of the class token and of the patches.
    size = math.isqrt(shape["visual.positional_embedding"][0] - 1) * patch_size
    return _openai(image, text, out_width, size)


def _openai(
    image: dict[str, Any],
    text: dict[str, Any],
    projection_width: int,
    size: int,
    activation: str = "quick_gelu",
    images: Preprocessing | None = None,
    pixels: str = "clip",
) -> Described:
    """Towers as OpenAI builds them."""
    if "patch_size" in image:
        image |= dict(
            name="vit", norm_eps=1e-5, activation=activation, pre_norm=True, patch_bias=False
        )
    image["pixels"] = pixels
    # 2: the pooled token is the one of the highest id.
    text |= dict(activation=activation, end_token=2)
    model = clip.make(dict(image=image, text=text, projection_width=projection_width))
    usual = Preprocessing(size, 1.0, "pil_bicubic", stretch=False)
    return Described(model, size, images or usual)


def _of_open_clip(config: Mapping[str, Any], where: Path) -> Described:
    model = _known(config.get("model_cfg"), "model_cfg", where)
    vision, text = (_known(model.get(f"{x}_cfg"), f"{x}_cfg", where) for x in ("vision", "text"))
    out_width = whole(model.get("embed_dim"), "embed_dim", where)
    text_width = whole(text.get("width", 512), "width", where)
    # 1. The text tower. Defaults are those of open_clip's config classes.
    own = dict(
        width=text_width,
        mlp_width=int(text_width * text.get("mlp_ratio", 4.0)),
        num_layers=whole(text.get("layers", 12), "layers", where),
        num_heads=whole(text.get("heads", 8), "heads", where),
        vocab_size=whole(text.get("vocab_size", 49408), "vocab_size", where),
        max_length=whole(text.get("context_length", 77), "context_length", where),
        projection_width=out_width,
    )
    # 2. The image tower: a list of layers makes it a ResNet.
    layers, width = vision.get("layers", 12), whole(vision.get("width", 768), "width", where)
    size = whole(vision.get("image_size", 224), "image_size", where)
    if isinstance(layers, list):
        image = dict(name="resnet", stage_sizes=tuple(layers), width=width, out_width=out_width)
    else:
        image = dict(
            width=width,
            mlp_dim=int(width * vision.get("mlp_ratio", 4.0)),
            depth=whole(layers, "layers", where),
            num_heads=width // whole(vision.get("head_width", _HEAD_WIDTH), "head_width", where),
            patch_size=whole(vision.get("patch_size", 16), "patch_size", where),
        )
    # 3. What both share.
    quick = model.get("quick_gelu", False)
    if not isinstance(quick, bool):
        raise InputError(f"{where}: quick_gelu must be true or false, got {quick!r}")
    projection = 0 if isinstance(layers, list) else out_width
    activation = "quick_gelu" if quick else "gelu"
    images, pixels = _open_clip_images(config.get("preprocess_cfg") or {}, size, where)
    return _openai(image, own, projection, size, activation, images, pixels)


def _open_clip_images(
    fields: Mapping[str, Any], size: int, where: Path
) -> tuple[Preprocessing, str]:
    usual = PIXELS["clip"]
    given = (fields.get("mean", usual[0]), fields.get("std", usual[1]))
    # A network's `pixels` is the key of mean and deviation, not the numbers.
    names = [n for n, v in PIXELS.items() if [list(x) for x in v] == [list(x) for x in given]]
    if not names:
        raise InputError(
            f"{where}: pixels were scaled by mean {given[0]} and deviation {given[1]}; known are "
            f"{', '.join(PIXELS)}"
        )
    mode, rule = fields.get("resize_mode", "shortest"), fields.get("interpolation", "bicubic")
    if mode not in ("shortest", "squash") or rule not in ("bicubic", "bilinear"):
        raise InputError(
            f"{where}: preprocess_cfg must have resize_mode shortest or squash, and interpolation "
            f"bicubic or bilinear, got {mode} and {rule}"
        )
    return Preprocessing(size, 1.0, f"pil_{rule}", stretch=mode == "squash"), names[0]


def _checked(model: Clip, size: int, images: Preprocessing, where: Path) -> Described:
    if images.size not in (None, size):
        raise InputError(
            f"{where}: image_size and the crop size of {PREPROCESSOR} must be equal, got {size} "
            f"and {images.size}; use the files that came with these weights"
        )
    return Described(model, size, images)


def _fields(
    config: Mapping[str, Any], names: Mapping[str, tuple[str, int]], where: Path
) -> dict[str, Any]:
    return {
        ours: whole(config.get(theirs, default), theirs, where)
        for ours, (theirs, default) in names.items()
    }


def _activation(config: Mapping[str, Any], siglip: bool, where: Path) -> str:
    name = config.get("hidden_act", "gelu_pytorch_tanh" if siglip else "quick_gelu")
    if not isinstance(name, str) or name not in _NAMES_OF_ACTIVATIONS:
        names = " or ".join(_NAMES_OF_ACTIVATIONS)
        raise InputError(
            f"{where}: hidden_act must be {names}, got {name!r}; use the config.json that came "
            "with these weights"
        )
    return _NAMES_OF_ACTIVATIONS[name]


def _number(value: Any, field: str, where: Path) -> float:
    if not isinstance(value, int | float) or not 0 < value < 1:
        raise InputError(f"{where}: {field} must be a small number above 0, got {value!r}")
    return float(value)


def _known(config: Any, part: str, where: Path) -> dict[str, Any]:
    """A section of open_clip's config; raises InputError for fields that are not implemented."""
    config = config or {}
    for field in sorted(set(config) - set(_OPEN_CLIP_FIELDS[part])):
        if config[field] not in (None, False):  # switched off
            raise InputError(
                f"{where}: {part}.{field}={config[field]!r} is not implemented; use a CLIP of "
                "OpenAI's kind, or SigLIP in transformers' layout"
            )
    return dict(config)


def _check_family(tensors: Mapping[str, Tensor], where: Any) -> None:
    for name in ("token_embedding.weight", "text_projection", "visual.conv1.weight"):
        if name not in tensors:
            raise InputError(
                f"{where}: the tensor {name} is missing, which every CLIP of OpenAI's kind has; "
                "the weights are of another model, use CLIP weights"
            )


def _count(tensors: Mapping[str, Tensor], start: str) -> int:
    depth = start.count(".")
    return len({name.split(".")[depth] for name in tensors if name.startswith(start)})


def _transformers_config(model: Clip, size: int) -> dict[str, Any]:
    image, text = model.image, model.text
    assert isinstance(image, ViT)
    kind = "siglip" if model.sigmoid else "clip"
    vision = {theirs: getattr(image, ours) for ours, (theirs, _) in _VIT.items()}
    vision |= {
        "intermediate_size": image.mlp_dim or 4 * image.width,
        "hidden_act": _ACTIVATIONS_BY_NAME[image.activation],
        "layer_norm_eps": image.norm_eps,
        "image_size": size,
        "patch_size": image.patch_size,
        "model_type": f"{kind}_vision_model",
    }
    words = {theirs: getattr(text, ours) for ours, (theirs, _) in _TEXT.items()}
    words |= {
        "hidden_act": _ACTIVATIONS_BY_NAME[text.activation],
        "layer_norm_eps": text.norm_eps,
        "model_type": f"{kind}_text_model",
    }
    # CLIP's width of the common space is in the config and in those of both towers.
    if model.sigmoid:
        words["projection_size"] = text.projection_width
    else:
        words["eos_token_id"] = text.end_token
        words["projection_dim"] = vision["projection_dim"] = model.projection_width
    top = {} if model.sigmoid else {"projection_dim": model.projection_width}
    return {
        "architectures": ["SiglipModel" if model.sigmoid else "CLIPModel"],
        "model_type": kind,
        **top,
        "text_config": words,
        "vision_config": vision,
        "dtype": "float32",
    }


def _open_clip_config(model: Clip, size: int) -> dict[str, Any]:
    image, text = model.image, model.text
    vision: dict[str, Any] = {"image_size": size, "width": image.width}
    if isinstance(image, ViT):
        vision |= {"layers": image.depth, "patch_size": image.patch_size}
        vision["head_width"] = image.width // image.num_heads
        vision["mlp_ratio"] = (image.mlp_dim or 4 * image.width) / image.width
    else:
        vision["layers"] = list(image.stage_sizes)
    words = {
        "context_length": text.max_length,
        "vocab_size": text.vocab_size,
        "width": text.width,
        "heads": text.num_heads,
        "layers": text.num_layers,
        "mlp_ratio": text.mlp_width / text.width,
    }
    return {
        "embed_dim": text.projection_width,
        "quick_gelu": text.activation == "quick_gelu",
        "vision_cfg": vision,
        "text_cfg": words,
    }
