"""What the small files beside weights say of images: their size, crop, rule of resizing, scaling.

Transformers' preprocessor_config.json and the pretrained_cfg of timm's config.json.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from launch.errors import InputError
from launch.files import read_object
from launch.runtime.layers.layers import PIXELS

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
# As DeiT and most others are evaluated.
CROP_RATIO = 0.875
# How each layout's library evaluates weights beside which nothing is said.
_USUAL = {
    "transformers": "pil_bilinear",
    "timm": "pil_bicubic",
    "torchvision": "pil_bilinear",
    "efficientnet": "pil_bicubic",
}
# Pillow's numbers, which transformers writes, and timm's words.
_RULES = {2: "pil_bilinear", 3: "pil_bicubic", "bilinear": "pil_bilinear", "bicubic": "pil_bicubic"}


@dataclasses.dataclass(frozen=True)
class _Processor:
    """What a processor of transformers does where its file leaves it out.

    Attributes:
        size: of images, pixels.
        square: a size that is one number is that of both sides, not that of the shorter one.
        resample: Pillow's number.
        crop: whether the middle is cut out.
    """

    size: int
    square: bool
    resample: int
    crop: bool


# By the first letters of their names.
_PROCESSORS = {
    "ViT": _Processor(224, True, 2, False),
    "DeiT": _Processor(256, True, 3, True),
    "ConvNext": _Processor(384, False, 3, False),
    "Bit": _Processor(224, False, 3, True),
    "CLIP": _Processor(224, False, 3, True),
    "Siglip": _Processor(224, True, 3, False),
}
# From this size on ConvNext's stretches the image; below it resizes to size / crop_pct and crops.
_CONVNEXT_STRETCHES = 384


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What becomes of an image before the network sees it.

    Attributes:
        size: of the square that is left, in pixels; None where no file says it.
        crop_ratio: of it to the side that was resized, in (0, 1].
        resize: of `resize.RULES`.
        stretch: both sides are resized, not the shorter one.
    """

    size: int | None
    crop_ratio: float
    resize: str
    stretch: bool

    def evaluation(self, size: int) -> dict[str, Any]:
        """As `config.evaluation`, for images of `size`; a False is left out."""
        fields = {"size": size, "crop_ratio": self.crop_ratio, "resize": self.resize}
        return fields | ({"stretch": True} if self.stretch else {})


def preprocessing(folder: Path, layout: str) -> Preprocessing:
    """What the files of a folder say.

    Args:
        folder: of the weights.
        layout: of `tensor_rules.LAYOUTS`; says what is usual where no file says more.

    Raises:
        InputError: a file says what is not implemented, or nothing that makes sense.
    """
    if timm := timm_config(folder):
        return _of_timm(timm, folder / CONFIG)
    path = folder / PREPROCESSOR
    if config := read_file(path):
        return _of_transformers(config, path)
    return Preprocessing(None, CROP_RATIO, _USUAL[layout], stretch=False)


def folder_of(path: epath.PathLike) -> Path:
    """Where the files beside weights are: those are a folder, or a file in it."""
    return Path(path) if Path(path).is_dir() else Path(path).parent


def read_file(path: Path) -> dict[str, Any]:
    """The object in a file; an empty one where there is no file."""
    return read_object(path) if path.exists() else {}


def timm_config(folder: Path) -> dict[str, Any]:
    """What timm says of the weights, if it wrote the file.

    Raises:
        InputError: it is no object.
    """
    written = read_file(folder / CONFIG).get("pretrained_cfg") or {}
    if not isinstance(written, dict):
        raise InputError(f"{folder / CONFIG}: pretrained_cfg must be an object, got {written!r}")
    return written


def scaling(folder: Path, where: Any) -> str:
    """The key of `PIXELS` that the files say.

    Args:
        folder: of the weights.
        where: the weights, for messages.

    Raises:
        InputError: they say nothing of it, or nothing that is implemented.
    """
    config = timm_config(folder) or read_file(folder / PREPROCESSOR)
    mean, std = (config.get(f"image_{key}", config.get(key)) for key in ("mean", "std"))
    if mean is None or std is None:
        raise InputError(
            f"{where}: no file says how pixels were scaled; pass --pixels ({', '.join(PIXELS)})"
        )
    for switch in ("do_rescale", "do_normalize"):
        _need(config.get(switch, True) is True, folder, switch, config.get(switch), True)
    factor = config.get("rescale_factor", 1 / 255)
    is_usual = isinstance(factor, int | float) and math.isclose(factor, 1 / 255, rel_tol=1e-3)
    _need(is_usual, folder, "rescale_factor", factor, "1 / 255")
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
    """What `preprocessing` and `scaling` read, for other libraries.

    Args:
        evaluation: fields of `config.evaluation`. Ours of the rules of resizing is written as
            bilinear, which is nearest to it.
        pixels: a key of `PIXELS`.
        shape: [h, w, c] of the images.
        layout: of `tensor_rules.LAYOUTS`; users of all but 'transformers' get timm's.
    """
    size, _, channels = shape
    mean, std = (list(values)[:channels] for values in PIXELS[pixels])
    ratio, stretch = evaluation.get("crop_ratio") or 1.0, bool(evaluation.get("stretch"))
    rule = "bicubic" if evaluation.get("resize") == "pil_bicubic" else "bilinear"
    if layout != "transformers":
        return {
            "mean": mean,
            "std": std,
            "input_size": [channels, size, size],
            "crop_pct": ratio,
            "crop_mode": "squash" if stretch else "center",
            "interpolation": rule,
        }
    side = math.floor(size / ratio)
    square = {"height": side, "width": side}
    crop = not stretch or side != size
    # The processors of these models do this and no more.
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
    # timm validates at the sizes for tests, where there are any.
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
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "ViT")
    name = next((name for name in _PROCESSORS if kind.startswith(name)), "ViT")
    usual = _PROCESSORS[name]
    does_resize = config.get("do_resize", True)
    _need(does_resize is True, where, "do_resize", does_resize, True)
    side, stretch = _side(config.get("size") or usual.size, usual.square, where)
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
    """Pixels, and whether they are those of both sides, not of the shorter one."""
    if not isinstance(size, dict):
        return whole(size, "size", where), square
    if "shortest_edge" in size:
        return whole(size["shortest_edge"], "size", where), False
    height, width = size.get("height"), size.get("width")
    _need(height == width, where, "size", size, "a square")
    return whole(height, "size", where), True


def _share(size: int, side: int) -> float:
    """The ratio that makes of a size this side, in spite of rounding."""
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
    """A number of pixels, or of parts of a network.

    Raises:
        InputError: it is none.
    """
    if not isinstance(value, int) or value < 1:
        raise InputError(f"{where}: {field} must be a positive whole number, got {value!r}")
    return value


def _need(is_so: bool, where: Path, field: str, value: Any, ours: Any) -> None:
    if not is_so:
        raise InputError(
            f"{where}: {field} must be {ours}, the only one implemented, got {value!r}"
        )
