"""RandAugment: several random operations in a row, drawn anew for every image."""

import dataclasses
from collections.abc import Callable

import numpy as np

from input_pipeline.augment import geometry, pixels
from input_pipeline.augment.geometry import Fill, Image
from input_pipeline.source import Example

_FULL = 10  # the magnitude at which the ranges below are reached

# (level, sign, increasing) -> the operation's argument; level is magnitude / 10, sign 1 or -1.
Argument = Callable[[float, int, bool], float]


@dataclasses.dataclass(frozen=True)
class _Operation:
    """A row of the table of operations."""

    apply: Callable[..., Image]  # (image[, argument][, fill]) -> image
    argument: Argument | None = None  # its strength, if it has one
    filled: bool = False  # whether it uncovers pixels that need a fill colour


# Ranges of timm's auto_augment.py, with level in [0, 1]. With `increasing` (timm's "inc1") a higher
# level always changes the image more; without it, it can mean a smaller change.
def _signed(full: float) -> Argument:
    return lambda level, sign, increasing: sign * full * level


def _factor(level: float, sign: int, increasing: bool) -> float:
    # A factor of 1 leaves the image unchanged.
    return max(0.1, 1 + sign * 0.9 * level) if increasing else 0.1 + 1.8 * level


def _bits(level: float, sign: int, increasing: bool) -> int:
    bits = int(4 * level)
    return min(8, max(0, 4 - bits if increasing else bits))


def _threshold(level: float, sign: int, increasing: bool) -> int:
    threshold = int(256 * level)
    return 256 - threshold if increasing else threshold


def _amount(level: float, sign: int, increasing: bool) -> int:
    return int(110 * level)


# Cubuk et al. 2020, table 6, plus Invert and SolarizeAdd, in timm's ranges. Angles are in degrees,
# shears and translations are shares of the side.
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
    """Applies one of `OPERATIONS` to an image uint8 [h, w, 1 or 3].

    `magnitude` is 0 or more; 10 is the end of the usual ranges. `sign`, 1 or -1, is the direction
    where there is one. With `increasing`, a larger magnitude always changes the image more. Without
    it, a larger one keeps more bits and solarises less, and below 5 means less colour, contrast,
    brightness or sharpness. For `fill` see `geometry.affine`.
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
    """Applies `layers` operations, each drawn uniformly (Cubuk et al. 2020, section 3).

    timm's `rand-m9-mstd0.5-inc1`, which DeiT uses, is layers 2, magnitude 9, std 0.5, increasing
    and probability 0.5; the paper's own code has no probability.

    Args:
        example: its 'image' is uint8 [h, w, 1 or 3].
        rng: a generator of this example's own.
        layers: the number of operations.
        magnitude: of all of them, see `operate`.
        std: of normal noise on each magnitude, which stays in [0, max(10, magnitude)].
        increasing: see `operate`.
        probability: that a drawn operation is applied.
        fill: see `operate`.
    """
    image = example["image"]
    noise = std * rng.standard_normal(layers) if std else np.zeros(layers)
    # One call for all random numbers: three per layer.
    for (which, sign, chance), shift in zip(rng.random((layers, 3)), noise, strict=True):
        if chance < probability:
            drawn = min(max(0.0, magnitude + shift), max(_FULL, magnitude))
            name = _NAMES[int(which * len(_NAMES))]
            image = operate(image, name, drawn, 1 if sign < 0.5 else -1, increasing, fill)
    return {**example, "image": image}
