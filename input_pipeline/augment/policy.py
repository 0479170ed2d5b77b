"""From a config to the function applied to every image, in training and in evaluation."""

import functools
import math
from collections.abc import Iterable
from numbers import Real
from typing import Any

import numpy as np

from input_pipeline.augment import colour, crop, erasing, flip, randaugment, resize
from input_pipeline.source import Augment, Example, Transform
from launch.errors import InputError
from launch.fields import Fields
from launch.runtime.limits import SIDE
from launch.runtime.optional_fields import Defaults, Mixed, below, unset

# The fields of `augment` and `evaluation`, in the order in which training applies them.
_COLOURS = ("randaugment", "three_augment", "colour_jitter")
_TRAINING = ("size", "crop", "shift", "flip", *_COLOURS, "erasing")
EVALUATION = ("size", "crop_ratio", "resize", "stretch")
_RANDAUGMENT = ("layers", "magnitude", "std", "increasing", "probability", "fill")


def lacking_in_augment(config: Fields) -> Defaults:
    """Defaults of the fields of `make_augment` that the section `augment` lacks."""
    own = {"size": unset(int), "shift": 0, "flip": False, "three_augment": False}
    own |= {"colour_jitter": 0.0, "erasing": 0.0}
    boxes: Defaults = {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3)}
    operations: Defaults = {"layers": unset(int), "magnitude": unset(float), "std": 0.0}
    operations |= {"increasing": False, "probability": 1.0, "fill": Mixed(128, (int, tuple))}
    if config.get("crop") is None:  # setting any default would switch the crop on
        boxes = dict.fromkeys(boxes, unset(tuple))
    return {
        **below("augment", config, own),
        **below("augment.crop", config.get("crop") or {}, boxes),
        **below("augment.randaugment", config.get("randaugment") or {}, operations),
    }


def lacking_in_evaluation(config: Fields) -> Defaults:
    """Defaults of the fields of `make_eval_transform` that the section `evaluation` lacks."""
    own = {"size": unset(int), "crop_ratio": 1.0, "resize": resize.RULES[0], "stretch": False}
    return below("evaluation", config, own)


def make_augment(config: Fields) -> Augment:
    """The augmentation that a config describes, with its steps in the order of the fields below.

    Args:
        config: a field that is absent, None, False or 0 leaves its step out. size: of the square
            image, in pixels (required). crop: dict of `scale` and `ratio`, both optional, see
            `crop.random_resized_crop`; without it, the largest central square. shift: the largest
            shift in pixels, see `crop.random_shift`. flip: whether every other image is mirrored.
            randaugment: dict of the arguments of `randaugment.rand_augment`. three_augment: one of
            greyscale, solarisation and blur. colour_jitter: its strength, see
            `colour.colour_jitter`. erasing: the probability of random erasing.

    Returns:
        A function of an example and a generator. It raises InputError unless the image has 1 or 3
            channels and `fill` fits them.

    Raises:
        InputError: a field is unknown, missing or out of range.
    """
    config = _fields("augment", config, _TRAINING, needs=("size",))
    size = _whole("augment.size", config["size"])
    # 1. To the size of the network.
    steps: list[Augment] = [_crop(size, config.get("crop"))]
    # 2. Geometry.
    if config.get("shift"):
        shift = _whole("augment.shift", config["shift"])
        steps.append(functools.partial(crop.random_shift, max_shift=shift))
    if _flag("augment.flip", config.get("flip")):
        steps.append(flip.random_flip)
    # 3. Colours.
    if config.get("randaugment") is not None:
        steps.append(_randaugment(config["randaugment"]))
    if _flag("augment.three_augment", config.get("three_augment")):
        steps.append(colour.three_augment)
    if strength := _number("augment.colour_jitter", config.get("colour_jitter", 0)):
        steps.append(functools.partial(colour.colour_jitter, strength=strength))
    # 4. Erasing, last, so that nothing changes its noise.
    if probability := _number("augment.erasing", config.get("erasing", 0), 1):
        steps.append(functools.partial(erasing.random_erasing, probability=probability))
    return functools.partial(_apply, steps=steps)


def make_eval_transform(config: Fields) -> Transform:
    """The transform of evaluation: `size`, and perhaps `crop_ratio`, `resize` and `stretch`.

    See `crop.resized_central_crop`. Raises InputError if a field is unknown, missing or out of
    range.
    """
    config = _fields("evaluation", config, EVALUATION, needs=("size",))
    size = _whole("evaluation.size", config["size"])
    # 1 is no crop beyond the square.
    ratio = config.get("crop_ratio", 1)
    if not _number("evaluation.crop_ratio", ratio, 1):
        raise InputError("evaluation.crop_ratio must be above 0 and at most 1, got 0")
    rule = config.get("resize", resize.RULES[0])
    if rule not in resize.RULES:
        raise InputError(
            f"evaluation.resize must be one of {', '.join(resize.RULES)}, got {rule!r}"
        )
    stretch = _flag("evaluation.stretch", config.get("stretch"))
    return functools.partial(
        crop.resized_central_crop, size=size, crop_ratio=ratio, rule=rule, stretch=stretch
    )


def _apply(example: Example, rng: np.random.Generator, steps: list[Augment]) -> Example:
    channels = example["image"].shape[2]
    if channels not in (1, 3):
        raise InputError(f"images must have 1 (grey) or 3 channels to be augmented, got {channels}")
    # Each step returns a new example; the source may keep the old one.
    for step in steps:
        example = step(example, rng)
    return example


def _square(example: Example, rng: np.random.Generator, size: int) -> Example:
    return {**example, "image": resize.square(example["image"], size)}


def _crop(size: int, config: Any) -> Augment:
    if config is None:
        return functools.partial(_square, size=size)
    config = _fields("augment.crop", config, ("scale", "ratio"))
    bounds: dict[str, Any] = {
        name: _bounds(f"augment.crop.{name}", config[name]) for name in config
    }
    if bounds.get("scale", (0, 0))[1] > 1:
        raise InputError(
            f"augment.crop.scale must be at most 1 (the whole image), got {bounds['scale']}"
        )
    return functools.partial(crop.random_resized_crop, size=size, **bounds)


def _randaugment(config: Any) -> Augment:
    name = "augment.randaugment"
    config = _fields(name, config, _RANDAUGMENT, needs=("layers", "magnitude"))
    arguments: dict[str, Any] = {
        "layers": _whole(f"{name}.layers", config["layers"]),
        "magnitude": _number(f"{name}.magnitude", config["magnitude"]),
        "std": _number(f"{name}.std", config.get("std", 0)),
        "increasing": _flag(f"{name}.increasing", config.get("increasing")),
        "probability": _number(f"{name}.probability", config.get("probability", 1), 1),
    }
    if "fill" in config:
        arguments["fill"] = _fill(f"{name}.fill", config["fill"])
        # Three values fit RGB only, which is known when the first image comes.
        if not isinstance(arguments["fill"], float):
            return functools.partial(_rand_augment_rgb, **arguments)
    return functools.partial(randaugment.rand_augment, **arguments)


def _rand_augment_rgb(example: Example, rng: np.random.Generator, **arguments: Any) -> Example:
    if example["image"].shape[2] != 3:
        raise InputError(
            "augment.randaugment.fill must be one value for grey images, got 3; keep one"
        )
    return randaugment.rand_augment(example, rng, **arguments)


def _fields(
    what: str, config: Any, allowed: tuple[str, ...], needs: Iterable[str] = ()
) -> dict[str, Any]:
    if not hasattr(config, "items"):
        raise InputError(
            f"{what} must be a group of fields of {', '.join(allowed)}, got {config!r}"
        )
    if unknown := sorted(set(config) - set(allowed)):
        raise InputError(f"{what} has no field {unknown[0]!r}; use {', '.join(allowed)}")
    # None counts as absent, so that a command line can unset a field.
    given = {key: value for key, value in config.items() if value is not None}
    for name in needs:
        if name not in given:
            raise InputError(f"{what} needs the field {name!r}; set it in the config")
    return given


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _whole(name: str, value: Any) -> int:
    if not _is_number(value) or value % 1 or not 1 <= value <= SIDE[1]:
        raise InputError(f"{name} must be a whole number from 1 to {SIDE[1]}, got {value!r}")
    return int(value)


def _number(name: str, value: Any, most: float = np.inf) -> float:
    if not _is_number(value) or not 0 <= value <= most:
        allowed = "0 or more" if most == np.inf else f"in [0, {most:g}]"
        raise InputError(f"{name} must be a number {allowed}, got {value!r}")
    return float(value)


def _flag(name: str, value: Any) -> bool:
    if value not in (None, True, False):
        raise InputError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def _bounds(name: str, value: Any) -> tuple[float, float]:
    pair = tuple(value) if np.ndim(value) == 1 else ()
    if len(pair) != 2 or not all(map(_is_number, pair)) or not 0 < pair[0] <= pair[1]:
        raise InputError(
            f"{name} must be two numbers above 0, the smaller one first, got {value!r}"
        )
    return float(pair[0]), float(pair[1])


def _fill(name: str, value: Any) -> float | tuple[float, ...]:
    values = tuple(value) if np.ndim(value) == 1 else (value,)
    right = len(values) in (1, 3) and all(map(_is_number, values))
    if not right or not all(0 <= v <= 255 for v in values):
        raise InputError(f"{name} must be one value in [0, 255], or three, got {value!r}")
    return tuple(map(float, values)) if len(values) == 3 else float(values[0])
