"""Pillow's operations on the values of an image: what RandAugment and 3-Augment are made of.

Every function takes a uint8 image [h, w, 1 or 3] (RGB) and returns a new one of the same shape;
those without neighbours are one table of 256 values. A factor of 1 is the image itself.
"""

import cv2
import numpy as np
from jaxtyping import UInt8

Image = UInt8[np.ndarray, "h w c"]

_LEVELS = np.arange(256)
# Pillow cuts off decimals, OpenCV rounds; a little less than a half, as sums are not exact.
_CUT_OFF = -0.499
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


def invert(image: Image) -> Image:
    """Every value v becomes 255 - v."""
    return cv2.bitwise_not(image).reshape(image.shape)


def posterize(image: Image, bits: int) -> Image:
    """Keeps the uppermost bits of every value, 0 to 8 of them."""
    return image & np.uint8(256 - (1 << (8 - bits)) if bits else 0)


def solarize(image: Image, threshold: int) -> Image:
    """Inverts the values from the threshold on."""
    return _look_up(image, np.where(threshold > _LEVELS, _LEVELS, 255 - _LEVELS))


def solarize_add(image: Image, amount: int) -> Image:
    """Adds to the values below 128."""
    return _look_up(image, np.where(_LEVELS < 128, _LEVELS + amount, _LEVELS))


def autocontrast(image: Image) -> Image:
    """Stretches each channel so that it begins at 0 and ends at 255."""
    # Both axes at once would take NumPy forty times as long.
    low, high = image.min(0).min(0).astype(float), image.max(0).max(0).astype(float)
    scale = np.where(high > low, 255 / np.maximum(high - low, 1), 1)
    low = np.where(high > low, low, 0)
    return _look_up(image, _LEVELS[:, None] * scale - low * scale)


def equalize(image: Image) -> Image:
    """Makes every value of a channel about as frequent."""
    return _look_up(image, np.stack([_equal(plane) for plane in cv2.split(image)], axis=-1))


def _equal(plane: UInt8[np.ndarray, "h w"]) -> np.ndarray:
    counts = cv2.calcHist([plane], [0], None, [256], [0, 256]).ravel().astype(int)
    step = (counts.sum() - counts[plane.max()]) // 255
    if not step:
        return _LEVELS
    return (step // 2 + np.cumsum(counts) - counts) // step


def brightness(image: Image, factor: float) -> Image:
    """Black and the image, mixed."""
    return _from_level(image, 0, factor)


def contrast(image: Image, factor: float) -> Image:
    """The image's mean grey and the image, mixed."""
    return _from_level(image, int(cv2.mean(_grey(image))[0] + 0.5), factor)


def saturation(image: Image, factor: float) -> Image:
    """The grey image and the image, mixed: Pillow calls it Color."""
    return _mix(greyscale(image), image, factor)


def sharpness(image: Image, factor: float) -> Image:
    """The smoothed image and the image, mixed; the outermost pixels stay."""
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
    # In 32 bits, as Pillow does: where it meets a whole number decides what is cut off.
    levels = _LEVELS.astype(np.float32)
    return _look_up(image, level + np.float32(factor) * (levels - level))


def _mix(low: Image, image: Image, factor: float) -> Image:
    return cv2.addWeighted(image, factor, low, 1 - factor, _CUT_OFF).reshape(image.shape)


def _look_up(image: Image, table: np.ndarray) -> Image:
    """Replaces values by a table, [256] or one a channel [256, c]; decimals are cut off."""
    table = np.clip(table, 0, 255).astype(np.uint8)
    if table.ndim == 1:
        return cv2.LUT(image, table).reshape(image.shape)
    # A table of three channels is slower than three tables.
    planes = zip(cv2.split(image), table.T, strict=True)
    return cv2.merge([cv2.LUT(plane, column.copy()) for plane, column in planes]).reshape(
        image.shape
    )
