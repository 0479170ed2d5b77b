"""Crops: random ones for training, central ones for evaluation."""

import math

import numpy as np

from input_pipeline.augment.resize import resize, resize_by
from input_pipeline.source import Example
from launch.errors import InputError

_TRIES = 10  # boxes drawn before the central one is taken, as in torchvision


def random_shift(example: Example, rng: np.random.Generator, max_shift: int) -> Example:
    """Pads [h, w, c] with zeros and crops it back at random (He et al. 2016, section 4.2)."""
    image = example["image"]
    height, width, channels = image.shape
    # np.pad and rng.integers together take 100 us; this takes 2 us for a small image.
    padded = np.zeros((height + 2 * max_shift, width + 2 * max_shift, channels), image.dtype)
    padded[max_shift : max_shift + height, max_shift : max_shift + width] = image
    # Uniform up to `max_shift` pixels in each direction.
    top, left = (rng.random(2) * (2 * max_shift + 1)).astype(int)
    return {**example, "image": padded[top : top + height, left : left + width]}


def random_crop(example: Example, rng: np.random.Generator, size: int) -> Example:
    """A random square of an image [h, w, c], `size` pixels wide; InputError if it does not fit."""
    image = example["image"]
    height, width = image.shape[:2]
    if size > min(height, width):
        raise InputError(
            f"a crop must fit the image of {height}x{width} px, got {size} px; choose a smaller "
            "crop"
        )
    top, left = (rng.random(2) * (height - size + 1, width - size + 1)).astype(int)
    return {**example, "image": image[top : top + size, left : left + size]}


def central_crop(example: Example, size: int) -> Example:
    """The central square of an image [h, w, c] whose sides are at least `size` pixels."""
    height, width, _ = example["image"].shape
    top, left = (height - size) // 2, (width - size) // 2
    return {**example, "image": example["image"][top : top + size, left : left + size]}


def random_resized_crop(
    example: Example,
    rng: np.random.Generator,
    size: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Example:
    """A random box of an image [h, w, c], resized to a square (Szegedy et al. 2015, section 6).

    The box's area is a uniform share in `scale` of the image's; its width over height is
    log-uniform in `ratio`. If ten boxes do not fit, the largest central box that `ratio` allows is
    used.
    """
    image = example["image"]
    height, width, _ = image.shape
    top, left, height, width = _random_box(rng, height, width, scale, ratio)
    cropped = image[top : top + height, left : left + width]
    return {**example, "image": resize(cropped, size)}


def _random_box(
    rng: np.random.Generator,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    # 1. With area A and aspect r, the sides are sqrt(A / r) and sqrt(A r). All tries are drawn at
    # once, which is faster than one by one.
    for share, u in rng.random((_TRIES, 2)).tolist():
        pixels = height * width * (scale[0] + (scale[1] - scale[0]) * share)
        wide = log_uniform(ratio, u)
        h, w = round(math.sqrt(pixels / wide)), round(math.sqrt(pixels * wide))
        if 0 < h <= height and 0 < w <= width:
            top, left = (rng.random(2) * (height - h + 1, width - w + 1)).astype(int).tolist()
            return top, left, h, w
    # 2. None fitted: the whole image, cut where its aspect exceeds the bounds, as in torchvision.
    h = max(1, min(height, round(width / ratio[0])))
    w = max(1, min(width, round(height * ratio[1])))
    return (height - h) // 2, (width - w) // 2, h, w


def log_uniform(bounds: tuple[float, float], u: float) -> float:
    """From bounds[0] at u = 0 to bounds[1] at u = 1; log-uniform for uniform `u`."""
    return bounds[0] * (bounds[1] / bounds[0]) ** u


def resized_central_crop(
    example: Example, size: int, crop_ratio: float, rule: str = "opencv", stretch: bool = False
) -> Example:
    """The centre of an image [h, w, c] at a fixed scale, for evaluation.

    Args:
        example: changed in its 'image' only.
        size: of the square that is returned, in pixels.
        crop_ratio: in (0, 1]. The shorter side is resized to size / crop_ratio before the crop (to
            256 pixels for 224 and 0.875).
        rule: one of `resize.RULES`.
        stretch: resize both sides to that and lose the aspect, as transformers' ViT does.
    """
    image = example["image"]
    shorter, side = min(image.shape[:2]), math.floor(size / crop_ratio)
    height, width = (side if stretch else side * length // shorter for length in image.shape[:2])
    return central_crop({**example, "image": resize_by(rule, image, height, width)}, size)
