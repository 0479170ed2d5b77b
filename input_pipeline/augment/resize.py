"""The rule by which images change size, and by name those that imported weights expect."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from input_pipeline.augment.pillow import resize_as_pillow

if TYPE_CHECKING:
    from scipy import sparse

Image = UInt8[np.ndarray, "h w c"] | Float32[np.ndarray, "h w c"]
Square = UInt8[np.ndarray, "{size} {size} c"] | Float32[np.ndarray, "{size} {size} c"]
Resized = UInt8[np.ndarray, "{height} {width} c"] | Float32[np.ndarray, "{height} {width} c"]

# Ours, in training and wherever nothing else is asked for; Pillow's are for imported weights alone.
RULES = ("opencv", "pil_bilinear", "pil_bicubic")
_LARGE = 1 << 22  # values; `_average` needs room for a float each, OpenCV does not


def resize(image: Image, size: int | tuple[int, int]) -> np.ndarray:
    """Resizes an image: area averages where it shrinks, bilinear where it grows.

    OpenCV's bilinear does not filter before it drops pixels, so it is never used to shrink.

    Args:
        image: any number of channels.
        size: height and width, or one number for both.

    Returns:
        The image with its dtype, range and channel axis; itself if it already has that size.
    """
    height, width = (size, size) if isinstance(size, int) else size
    shrunk = min(height, image.shape[0]), min(width, image.shape[1])
    for shape, rule in ((shrunk, _shrink), ((height, width), _grow)):
        if image.shape[:2] != shape:
            image = rule(image, *shape)
    return image


def resize_by(rule: str, image: Image, height: int, width: int) -> Resized:
    """An image of another size, by one of `RULES`; Pillow's are of bytes."""
    if rule == "opencv":
        return resize(image, (height, width))
    return resize_as_pillow(image, height, width, rule.removeprefix("pil_"))


def _grow(image: Image, height: int, width: int) -> Resized:
    grown = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return grown.reshape(height, width, -1)


def _shrink(image: Image, height: int, width: int) -> Resized:
    whole = not (image.shape[0] % height or image.shape[1] % width)
    if whole or image.dtype != np.uint8 or image.size > _LARGE:
        small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        return small.reshape(height, width, -1)
    return _average(image, height, width)


def _average(image: Image, height: int, width: int) -> Resized:
    """What OpenCV's INTER_AREA gives, in half its time: it decides per pixel what depends on rows.

    Every row of the result is a weighted sum of a few rows, and so is every column.
    """
    h, w, channels = image.shape
    rows = _weights(h, height) @ image.reshape(h, -1).astype(np.float32)
    columns = cv2.transpose(rows.reshape(height, w, channels)).reshape(w, -1)
    small = cv2.convertScaleAbs(_weights(w, width) @ columns)  # rounds
    return cv2.transpose(small.reshape(width, height, channels)).reshape(height, width, channels)


@functools.lru_cache(maxsize=1024)  # the crops of a run come in hundreds of lengths; 3 kB each
def _weights(length: int, shorter: int) -> sparse.csr_array:
    """How much of each of `length` pixels is in each of `shorter` equal parts; rows add up to 1."""
    # Importing it takes a fifth of a second, which tasks on images of one size save.
    from scipy import sparse

    ends = np.linspace(0, length, shorter + 1)
    pixels = ends[:-1, None].astype(np.int32) + np.arange(-(-length // shorter) + 1, dtype=np.int32)
    covered = np.minimum(ends[1:, None], pixels + 1) - np.maximum(ends[:-1, None], pixels)
    values = (covered.clip(0) * (shorter / length)).astype(np.float32)
    starts = np.arange(shorter + 1, dtype=np.int32) * pixels.shape[1]
    # Behind the end nothing is covered, but an index has to be one.
    columns = np.minimum(pixels, length - 1)
    weights = sparse.csr_array((values.ravel(), columns.ravel(), starts), shape=(shorter, length))
    weights.eliminate_zeros()
    return weights


def square(image: Image, size: int) -> Square:
    """The largest square in the middle of an image, resized: what every image set is brought to.

    It shows what the shorter side brought to `size` and a centre crop show, without resizing what
    the crop cuts off (Dhariwal & Nichol 2021, for ImageNet).

    Args:
        image: any height, width and number of channels.
        size: of the square.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return resize(image[top : top + side, left : left + side], size)
