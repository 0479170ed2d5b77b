"""Random crops."""

from typing import Any

import numpy as np

from input_pipeline.files import InputError


def random_shift(
    example: dict[str, Any], rng: np.random.Generator, max_shift: int
) -> dict[str, Any]:
    """Pads the image with zeros and crops it back at a random place (He et al. 2016, section 4.2).

    Args:
        example: its field 'image' is [h, w, c].
        rng: randomness.
        max_shift: pixels of padding on every side; the shift is uniform up to it.
    """
    image = example["image"]
    height, width, channels = image.shape
    # np.pad and rng.integers would take 100 us together, an image of some pixels 2.
    padded = np.zeros((height + 2 * max_shift, width + 2 * max_shift, channels), image.dtype)
    padded[max_shift : max_shift + height, max_shift : max_shift + width] = image
    top, left = (rng.random(2) * (2 * max_shift + 1)).astype(int)
    return {**example, "image": padded[top : top + height, left : left + width]}


def random_crop(example: dict[str, Any], rng: np.random.Generator, size: int) -> dict[str, Any]:
    """A square part of the image; every place is as likely.

    Args:
        example: its field 'image' is [h, w, c].
        rng: randomness.
        size: of the square, in pixels.

    Raises:
        InputError: the image is smaller.
    """
    image = example["image"]
    height, width = image.shape[:2]
    if size > min(height, width):
        raise InputError(f"a crop of {size} px from an image of {height}x{width} px: choose less")
    top, left = (rng.random(2) * (height - size + 1, width - size + 1)).astype(int)
    return {**example, "image": image[top : top + size, left : left + size]}


def central_crop(example: dict[str, Any], size: int) -> dict[str, Any]:
    """The square in the middle of the image.

    Args:
        example: its field 'image' is [h, w, c], h and w at least `size`.
        size: of the square, in pixels.
    """
    height, width, _ = example["image"].shape
    top, left = (height - size) // 2, (width - size) // 2
    return {**example, "image": example["image"][top : top + size, left : left + size]}
