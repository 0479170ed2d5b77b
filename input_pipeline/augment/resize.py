"""Resizing: our own rule, and by name those that imported weights expect."""

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

# The first is the default, in training and evaluation; Pillow's are for imported weights.
RULES = ("opencv", "pil_bilinear", "pil_bicubic")
_LARGE = 1 << 22  # values above which `_average` would need too much memory, a float for each


def resize(image: Image, size: int | tuple[int, int]) -> np.ndarray:
    """Resizes an image of any number of channels: area averages to shrink, bilinear to grow.

    OpenCV's bilinear skips pixels without filtering, so it is never used to shrink. `size` is
    (height, width), or one number for both. Keeps dtype, range and channel axis.
    """
    height, width = (size, size) if isinstance(size, int) else size
    # Shrinking first is cheaper; one axis may shrink while the other grows.
    shrunk = min(height, image.shape[0]), min(width, image.shape[1])
    for shape, rule in ((shrunk, _shrink), ((height, width), _grow)):
        if image.shape[:2] != shape:
            image = rule(image, *shape)
    return image


def resize_by(rule: str, image: Image, height: int, width: int) -> Resized:
    """Resizes by one of `RULES`; Pillow's take uint8 only."""
    if rule == "opencv":
        return resize(image, (height, width))
    return resize_as_pillow(image, height, width, rule.removeprefix("pil_"))


def _grow(image: Image, height: int, width: int) -> Resized:
    grown = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    # OpenCV drops the axis of a single channel.
    return grown.reshape(height, width, -1)


def _shrink(image: Image, height: int, width: int) -> Resized:
    # OpenCV is fast where each new pixel is a whole number of old ones.
    whole = not (image.shape[0] % height or image.shape[1] % width)
    if whole or image.dtype != np.uint8 or image.size > _LARGE:
        small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        return small.reshape(height, width, -1)
    return _average(image, height, width)


def _average(image: Image, height: int, width: int) -> Resized:
    """OpenCV's INTER_AREA in half its time, as two products with sparse matrices."""
    h, w, channels = image.shape
    # OpenCV works out weights for each pixel, though they depend on the row and the column alone.
    # [height, h] @ [h, w * c], then the same for columns: [width, w] @ [w, height * c].
    rows = _weights(h, height) @ image.reshape(h, -1).astype(np.float32)
    columns = cv2.transpose(rows.reshape(height, w, channels)).reshape(w, -1)
    small = cv2.convertScaleAbs(_weights(w, width) @ columns)  # rounds
    return cv2.transpose(small.reshape(width, height, channels)).reshape(height, width, channels)


@functools.lru_cache(maxsize=1024)  # crops have hundreds of lengths; 3 kB for each
def _weights(length: int, shorter: int) -> sparse.csr_array:
    """[shorter, length]: the share of each old pixel in each new one; rows sum to 1."""
    # Imported late: it takes 0.2 s, which tasks on images of one size need not wait for.
    from scipy import sparse

    ends = np.linspace(0, length, shorter + 1)
    # [shorter, k]: the old pixels that each part may touch, and the length it covers of each.
    pixels = ends[:-1, None].astype(np.int32) + np.arange(-(-length // shorter) + 1, dtype=np.int32)
    covered = np.minimum(ends[1:, None], pixels + 1) - np.maximum(ends[:-1, None], pixels)
    values = (covered.clip(0) * (shorter / length)).astype(np.float32)
    starts = np.arange(shorter + 1, dtype=np.int32) * pixels.shape[1]
    # Past the last pixel nothing is covered, but indices must be valid.
    columns = np.minimum(pixels, length - 1)
    weights = sparse.csr_array((values.ravel(), columns.ravel(), starts), shape=(shorter, length))
    weights.eliminate_zeros()
    return weights


def square(image: Image, size: int) -> Square:
    """The largest central square, resized to `size` pixels: how every image set is prepared."""
    # As resizing the shorter side and cropping the centre (Dhariwal and Nichol 2021, for ImageNet),
    # but without resizing what the crop cuts off.
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return resize(image[top : top + side, left : left + side], size)
