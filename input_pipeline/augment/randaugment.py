"""RandAugment: some operations in a row, drawn anew for every image."""

import dataclasses
from collections.abc import Callable

import numpy as np

from input_pipeline.augment import geometry, pixels
from input_pipeline.augment.geometry import Fill, Image
from input_pipeline.source import Example

_FULL = 10  # the magnitude that the ranges below are given for

# (level, sign, increasing) -> the operation's argument; level is magnitude / 10, sign 1 or -1.
Argument = Callable[[float, int, bool], float]


@dataclasses.dataclass(frozen=True)
class _Operation:
    """One row of the table.

    Attributes:
        apply: image, the arguments there are -> image.
        argument: its strength; None where it has none.
        filled: whether it takes a colour to fill with.
    """

    apply: Callable[..., Image]
    argument: Argument | None = None
    filled: bool = False


def _signed(full: float) -> Argument:
    return lambda level, sign, increasing: sign * full * level


def _factor(level: float, sign: int, increasing: bool) -> float:
    return max(0.1, 1 + sign * 0.9 * level) if increasing else 0.1 + 1.8 * level


def _bits(level: float, sign: int, increasing: bool) -> int:
    bits = int(4 * level)
    return min(8, max(0, 4 - bits if increasing else bits))


def _threshold(level: float, sign: int, increasing: bool) -> int:
    threshold = int(256 * level)
    return 256 - threshold if increasing else threshold


def _amount(level: float, sign: int, increasing: bool) -> int:
    return int(110 * level)


# Cubuk et al. 2020, table 6, with Invert and SolarizeAdd and in the ranges of timm.
OPERATIONS = {
    "AutoContrast": _Operation(pixels.autocontrast),
    "Equalize": _Operation(pixels.equalize),
    "Invert": _Operation(pixels.invert),
    "Rotate": _Operation(geometry.rotate, _signed(30), filled=True),
    "Posterize": _Operation(pixels.posterize, _bits),
    "Solarize": _Operation(pixels.solarize, _threshold),
    "SolarizeAdd": _Operation(pixels.solarize_add, _amount),
    "Color": _Operation(pixels.saturation, _factor),
    "Contrast": _Operation(pixels.contrast, _factor),
    "Brightness": _Operation(pixels.brightness, _factor),
    "Sharpness": _Operation(pixels.sharpness, _factor),
    "ShearX": _Operation(geometry.shear_x, _signed(0.3), filled=True),
    "ShearY": _Operation(geometry.shear_y, _signed(0.3), filled=True),
    "TranslateX": _Operation(geometry.translate_x, _signed(0.45), filled=True),
    "TranslateY": _Operation(geometry.translate_y, _signed(0.45), filled=True),
}
_NAMES = tuple(OPERATIONS)


def operate(
    image: Image, name: str, magnitude: float, sign: int, increasing: bool, fill: Fill
) -> Image:
    """One operation.

    Args:
        image: uint8, 1 or 3 channels.
        name: of OPERATIONS.
        magnitude: 0 or more; 10 reaches the end of the usual ranges.
        sign: 1 or -1: the direction of what has one.
        increasing: whether a larger magnitude always changes the image more. If not, it keeps more
            bits, solarises less, and means less colour, contrast, brightness or sharpness below 5.
        fill: as in `geometry.affine`.
    """
    operation = OPERATIONS[name]
    arguments = [fill] if operation.filled else []
    if operation.argument:
        arguments.insert(0, operation.argument(magnitude / _FULL, sign, increasing))
    return operation.apply(image, *arguments)


def rand_augment(
    example: Example,
    rng: np.random.Generator,
    layers: int,
    magnitude: float,
    std: float = 0.0,
    increasing: bool = False,
    probability: float = 1.0,
    fill: Fill = 128,
) -> Example:
    """Operations one after the other, each drawn uniformly (Cubuk et al. 2020, section 3).

    DeiT's `rand-m9-mstd0.5-inc1` of timm is two layers, magnitude 9, std 0.5, increasing and
    probability 0.5; the paper's own code has no probability.

    Args:
        example: its field 'image' is uint8 [h, w, 1 or 3].
        rng: randomness.
        layers: how many operations.
        magnitude: of all of them, see `operate`.
        std: of normal noise on each magnitude; it ends at 0, and at 10 (or a larger `magnitude`).
        increasing: see `operate`.
        probability: of each drawn operation to be applied.
        fill: see `operate`.
    """
    image = example["image"]
    noise = std * rng.standard_normal(layers) if std else np.zeros(layers)
    for (which, sign, chance), shift in zip(rng.random((layers, 3)), noise, strict=True):
        if chance < probability:
            drawn = min(max(0.0, magnitude + shift), max(_FULL, magnitude))
            name = _NAMES[int(which * len(_NAMES))]
            image = operate(image, name, drawn, 1 if sign < 0.5 else -1, increasing, fill)
    return {**example, "image": image}
