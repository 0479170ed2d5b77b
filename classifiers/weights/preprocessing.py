"""What the small files beside weights say of images: size, crop, rule of resizing, scaling.

They are transformers' preprocessor_config.json and the pretrained_cfg of timm's config.json.
"""

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from classifiers.clip.tokenizer import TOKENIZER_FILES
from launch.errors import InputError
from launch.files import read_object
from launch.runtime.checkpoints import hub
from launch.runtime.checkpoints.safetensors_io import choose_file, file_names
from launch.runtime.layers.layers import PIXELS

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
# 224 of 256 pixels: DeiT and most others are evaluated so.
CROP_RATIO = 0.875
# How each layout's library evaluates weights that have no file beside them.
_USUAL = {
    "transformers": "pil_bilinear",
    "timm": "pil_bicubic",
    "torchvision": "pil_bilinear",
    "efficientnet": "pil_bicubic",
}
# By Pillow's numbers, which transformers writes, and by timm's words.
_RULES = {2: "pil_bilinear", 3: "pil_bicubic", "bilinear": "pil_bilinear", "bicubic": "pil_bicubic"}


@dataclasses.dataclass(frozen=True)
class _Processor:
    """What a processor of transformers does where its file leaves it out."""

    size: int  # pixels
    square: bool  # one number is the size of both sides, instead of the shorter one
    resample: int  # Pillow's number
    crop: bool  # whether the middle is cut out


# By the start of their names.
_PROCESSORS = {
    "ViT": _Processor(224, True, 2, False),
    "DeiT": _Processor(256, True, 3, True),
    "ConvNext": _Processor(384, False, 3, False),
    "Bit": _Processor(224, False, 3, True),
    "CLIP": _Processor(224, False, 3, True),
    "Siglip": _Processor(224, True, 3, False),
}
# From this size on, ConvNext's stretches; below, it resizes to size / crop_pct and crops.
_CONVNEXT_STRETCHES = 384


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What happens to an image before the network sees it."""

    size: int | None  # of the final square, pixels; None where no file says it
    crop_ratio: float  # final square / resized side, in (0, 1]
    resize: str  # of `resize.RULES`
    stretch: bool  # both sides are resized, not only the shorter one

    def evaluation(self, size: int) -> dict[str, Any]:
        """As `config.evaluation`, for images of `size`."""
        fields = {"size": size, "crop_ratio": self.crop_ratio, "resize": self.resize}
        return fields | ({"stretch": True} if self.stretch else {})


def preprocessing(folder: Path, layout: str) -> Preprocessing:
    """What the files of a folder say; where there are none, what is usual for the layout.

    Raises:
        InputError: a file asks for what is not implemented, or makes no sense.
    """
    if timm := timm_config(folder):
        return _of_timm(timm, folder / CONFIG)
    path = folder / PREPROCESSOR
    if config := read_file(path):
        return _of_transformers(config, path)
    return Preprocessing(None, CROP_RATIO, _USUAL[layout], stretch=False)


def folder_of(path: epath.PathLike) -> Path:
    """The folder of the files beside weights, which are a folder or a file in it."""
    return Path(path) if Path(path).is_dir() else Path(path).parent


def local_copy(source: str, stem: str) -> str:
    """A path as it is; of a repository of the Hub, owner/name, the folder it is downloaded to.

    `stem` begins the names of the weights. Raises `InputError` as `hub.local`, and for a
    repository without weights in safetensors.
    """
    single, index, parts = file_names(stem, None)
    small = (CONFIG, PREPROCESSOR, "open_clip_config.json", *TOKENIZER_FILES)
    folder = hub.local(source, (*small, single, index, parts))
    if hub.is_repository(source) and not any((folder / x).exists() for x in (single, index)):
        choose_file(hub.file_names(source), stem, None, source)
    return os.fspath(folder)


def origin(source: str, folder: str) -> dict[str, str]:
    """Where weights come from, for the config of their import."""
    # The client's folders are named by the commit.
    commit = {"commit": Path(folder).name} if hub.is_repository(source) else {}
    return {"from": source, **commit}


def read_file(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is no file."""
    return read_object(path) if path.exists() else {}


def timm_config(folder: Path) -> dict[str, Any]:
    """The `pretrained_cfg` of timm's config.json; {} where timm did not write the file."""
    written = read_file(folder / CONFIG).get("pretrained_cfg") or {}
    if not isinstance(written, dict):
        raise InputError(f"{folder / CONFIG}: pretrained_cfg must be an object, got {written!r}")
    return written


def scaling(folder: Path, where: Any) -> str:
    """The key of `PIXELS` that the files beside weights give.

    Raises:
        InputError: they do not say, or it is not implemented.
    """
    config = timm_config(folder) or read_file(folder / PREPROCESSOR)
    mean, std = (config.get(f"image_{key}", config.get(key)) for key in ("mean", "std"))
    if mean is None or std is None:
        raise InputError(
            f"{where}: no file says how pixels were scaled; pass --pixels ({', '.join(PIXELS)})"
        )
    # 1. Pixels must be divided by 255, then normalised.
    for switch in ("do_rescale", "do_normalize"):
        _need(config.get(switch, True) is True, folder, switch, config.get(switch), True)
    factor = config.get("rescale_factor", 1 / 255)
    is_usual = isinstance(factor, int | float) and math.isclose(factor, 1 / 255, rel_tol=1e-3)
    _need(is_usual, folder, "rescale_factor", factor, "1 / 255")
    # 2. Compare mean and deviation with those that we have; grey images have one of each.
    for values in (mean, std):
        if not isinstance(values, list) or not all(isinstance(x, int | float) for x in values):
            raise InputError(
                f"{where}: mean and deviation of pixels must be lists of numbers, got {values!r}"
            )
    for name, of_colours in PIXELS.items():
        statistics = np.asarray(of_colours)[:, : len(mean)]
        if np.shape(mean) == np.shape(std) and np.allclose((mean, std), statistics, atol=1e-4):
            return name
    raise InputError(
        f"{where}: the scaling of pixels must be one of {', '.join(PIXELS)}, got mean "
        f"{mean} and deviation {std}"
    )


def described(
    evaluation: Mapping[str, Any], pixels: str, shape: tuple[int, int, int], layout: str
) -> dict[str, Any]:
    """What `preprocessing` and `scaling` read, written for other libraries.

    `shape` is [h, w, c]. Our own rule of resizing is written as bilinear, the nearest that they
    have. All layouts but 'transformers' get timm's fields.
    """
    size, _, channels = shape
    mean, std = (list(values)[:channels] for values in PIXELS[pixels])
    ratio, stretch = evaluation.get("crop_ratio") or 1.0, bool(evaluation.get("stretch"))
    rule = "bicubic" if evaluation.get("resize") == "pil_bicubic" else "bilinear"
    # timm: a crop ratio.
    if layout != "transformers":
        return {
            "mean": mean,
            "std": std,
            "input_size": [channels, size, size],
            "crop_pct": ratio,
            "crop_mode": "squash" if stretch else "center",
            "interpolation": rule,
        }
    # transformers: the side before the crop, and the size of the crop.
    side = math.floor(size / ratio)
    square = {"height": side, "width": side}
    crop = not stretch or side != size
    # Each kind of processor has its own fields; these three do just this and no more.
    model = "Bit" if not stretch else "DeiT" if crop else "ViT"
    return {
        "image_processor_type": f"{model}ImageProcessor",
        "size": square if stretch else {"shortest_edge": side},
        "resample": 3 if rule == "bicubic" else 2,
        "rescale_factor": 1 / 255,
        "image_mean": mean,
        "image_std": std,
        **dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), True),
        "do_center_crop": crop,
        **({"crop_size": {"height": size, "width": size}} if crop else {}),
    }


def _of_timm(config: Mapping[str, Any], where: Path) -> Preprocessing:
    # timm evaluates at its test sizes where it has them.
    size = config.get("test_input_size") or config.get("input_size")
    size = size[-1] if isinstance(size, list) and size else size
    ratio = config.get("test_crop_pct") or config.get("crop_pct") or CROP_RATIO
    mode = config.get("crop_mode") or "center"
    _need(mode in ("center", "squash"), where, "crop_mode", mode, "center or squash")
    return Preprocessing(
        None if size is None else whole(size, "input_size", where),
        _ratio(ratio, where),
        _rule(config.get("interpolation") or "bicubic", "interpolation", where),
        stretch=mode == "squash",
    )


def _of_transformers(config: Mapping[str, Any], where: Path) -> Preprocessing:
    # 1. Which processor wrote the file decides what it leaves out.
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "ViT")
    name = next((name for name in _PROCESSORS if kind.startswith(name)), "ViT")
    usual = _PROCESSORS[name]
    does_resize = config.get("do_resize", True)
    _need(does_resize is True, where, "do_resize", does_resize, True)
    side, stretch = _side(config.get("size") or usual.size, usual.square, where)
    # 2. Whether and how the middle is cut out.
    size = side
    if name == "ConvNext":
        stretch = side >= _CONVNEXT_STRETCHES
        if not stretch:
            side = int(side / _ratio(config.get("crop_pct") or CROP_RATIO, where))
    elif config.get("do_center_crop", usual.crop):
        size = _side(config.get("crop_size") or 224, True, where)[0]
    elif "crop_pct" in config:
        side = math.floor(side / _ratio(config["crop_pct"], where))
    if size > side:
        raise InputError(
            f"{where}: crop_size must be at most the size that it is cut from, got {size}"
        )
    rule = _rule(config.get("resample", usual.resample), "resample", where)
    return Preprocessing(size, _share(size, side), rule, stretch)


def _side(size: Any, square: bool, where: Path) -> tuple[int, bool]:
    """Pixels, and whether they are those of both sides, instead of the shorter one."""
    if not isinstance(size, dict):
        return whole(size, "size", where), square
    if "shortest_edge" in size:
        return whole(size["shortest_edge"], "size", where), False
    height, width = size.get("height"), size.get("width")
    _need(height == width, where, "size", size, "a square")
    return whole(height, "size", where), True


def _share(size: int, side: int) -> float:
    """A ratio for which floor(size / ratio) is `side` again, in spite of rounding."""
    ratio = size / side
    return ratio if math.floor(size / ratio) == side else math.nextafter(ratio, 0)


def _ratio(value: Any, where: Path) -> float:
    if not isinstance(value, int | float) or not 0 < value <= 1:
        raise InputError(f"{where}: crop_pct must be a number in (0, 1], got {value!r}")
    return value


def _rule(value: Any, field: str, where: Path) -> str:
    is_known = isinstance(value, int | str) and value in _RULES
    _need(is_known, where, field, value, "bilinear (2) or bicubic (3)")
    return _RULES[value]


def whole(value: Any, field: str, where: Path) -> int:
    """The value; raises InputError unless it is a whole number of at least 1."""
    if not isinstance(value, int) or value < 1:
        raise InputError(f"{where}: {field} must be a positive whole number, got {value!r}")
    return value


def _need(is_so: bool, where: Path, field: str, value: Any, ours: Any) -> None:
    if not is_so:
        raise InputError(
            f"{where}: {field} must be {ours}, the only one implemented, got {value!r}"
        )
