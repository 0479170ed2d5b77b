"""Pillow's operations on pixel values, of which RandAugment and 3-Augment are made.

All take a uint8 image [h, w, 1 or 3] (RGB) and return a new one of the same shape. Where a pixel's
neighbours do not matter, the operation is a table of 256 values. A `factor` of 1 returns the image
unchanged, 0 the other end of the mixture.
"""

import cv2
import numpy as np
from jaxtyping import UInt8

Image = UInt8[np.ndarray, "h w c"]

_LEVELS = np.arange(256)
# Pillow truncates, OpenCV rounds: adding this makes rounding truncate. A little less than a half,
# because sums are not exact.
_CUT_OFF = -0.499
# Pillow's ImageFilter.SMOOTH.
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


def invert(image: Image) -> Image:
    """Maps v to 255 - v."""
    return cv2.bitwise_not(image).reshape(image.shape)


def posterize(image: Image, bits: int) -> Image:
    """Keeps the upper `bits` of every value, 0 to 8."""
    return image & np.uint8(256 - (1 << (8 - bits)) if bits else 0)


def solarize(image: Image, threshold: int) -> Image:
    """Inverts the values from `threshold` up."""
    return _look_up(image, np.where(threshold > _LEVELS, _LEVELS, 255 - _LEVELS))


def solarize_add(image: Image, amount: int) -> Image:
    """Adds `amount` to the values below 128."""
    return _look_up(image, np.where(_LEVELS < 128, _LEVELS + amount, _LEVELS))


def autocontrast(image: Image) -> Image:
    """Stretches each channel to the full range [0, 255]."""
    # NumPy takes forty times as long for both axes at once.
    low, high = image.min(0).min(0).astype(float), image.max(0).max(0).astype(float)
    # A channel of one value stays as it is.
    scale = np.where(high > low, 255 / np.maximum(high - low, 1), 1)
    low = np.where(high > low, low, 0)
    return _look_up(image, _LEVELS[:, None] * scale - low * scale)


def equalize(image: Image) -> Image:
    """Makes all values of a channel about equally frequent."""
    return _look_up(image, np.stack([_equal(plane) for plane in cv2.split(image)], axis=-1))


def _equal(plane: UInt8[np.ndarray, "h w"]) -> np.ndarray:
    counts = cv2.calcHist([plane], [0], None, [256], [0, 256]).ravel().astype(int)
    # Pillow's ImageOps.equalize: pixels per level, without those of the highest value.
    step = (counts.sum() - counts[plane.max()]) // 255
    if not step:
        return _LEVELS
    return (step // 2 + np.cumsum(counts) - counts) // step


def brightness(image: Image, factor: float) -> Image:
    """Mixes the image with black."""
    return _from_level(image, 0, factor)


def contrast(image: Image, factor: float) -> Image:
    """Mixes the image with its mean grey."""
    return _from_level(image, int(cv2.mean(_grey(image))[0] + 0.5), factor)


def saturation(image: Image, factor: float) -> Image:
    """Mixes the image with its grey version; Pillow calls it Color."""
    return _mix(greyscale(image), image, factor)


def sharpness(image: Image, factor: float) -> Image:
    """Mixes the image with a smoothed one; the border pixels stay."""
    smooth = cv2.filter2D(image, -1, _SMOOTH).reshape(image.shape)
    smooth[[0, -1]], smooth[:, [0, -1]] = image[[0, -1]], image[:, [0, -1]]
    return _mix(smooth, image, factor)


def greyscale(image: Image) -> Image:
    """Luma (ITU-R 601) in every channel."""
    if image.shape[2] == 1:
        return image.copy()
    return cv2.cvtColor(_grey(image), cv2.COLOR_GRAY2RGB)


def blur(image: Image, sigma: float) -> Image:
    """A Gaussian blur; sigma in pixels."""
    return cv2.GaussianBlur(image, (0, 0), sigma).reshape(image.shape)


def _grey(image: Image) -> UInt8[np.ndarray, "h w"]:
    return image[..., 0] if image.shape[2] == 1 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def _from_level(image: Image, level: int, factor: float) -> Image:
    # In float32 like Pillow: before truncation, the last bit decides about a level.
    levels = _LEVELS.astype(np.float32)
    return _look_up(image, level + np.float32(factor) * (levels - level))


def _mix(low: Image, image: Image, factor: float) -> Image:
    return cv2.addWeighted(image, factor, low, 1 - factor, _CUT_OFF).reshape(image.shape)


def _look_up(image: Image, table: np.ndarray) -> Image:
    # [256], or one table per channel [256, c]; truncated.
    table = np.clip(table, 0, 255).astype(np.uint8)
    if table.ndim == 1:
        return cv2.LUT(image, table).reshape(image.shape)
    # OpenCV is slower with one table of three channels than with three tables.
    planes = zip(cv2.split(image), table.T, strict=True)
    return cv2.merge([cv2.LUT(plane, column.copy()) for plane, column in planes]).reshape(
        image.shape
    )
