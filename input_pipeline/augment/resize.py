"""The one rule by which images change size, in training and in evaluation."""

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

Image = UInt8[np.ndarray, "h w c"] | Float32[np.ndarray, "h w c"]


def resize(image: Image, size: int | tuple[int, int]) -> Image:
    """Resizes an image: area averages where it shrinks, bilinear where it grows.

    OpenCV's bilinear does not filter before it drops pixels, so it is never used to shrink.

    Args:
        image: any number of channels.
        size: height and width, or one number for both.

    Returns:
        The image with its dtype, range and channel axis; itself if it already has that size.
    """
    height, width = (size, size) if isinstance(size, int) else size
    channels = image.shape[2]
    shrunk = min(height, image.shape[0]), min(width, image.shape[1])
    for (h, w), rule in ((shrunk, cv2.INTER_AREA), ((height, width), cv2.INTER_LINEAR)):
        if image.shape[:2] != (h, w):
            image = cv2.resize(image, (w, h), interpolation=rule).reshape(h, w, channels)
    return image


def square(image: Image, size: int) -> Image:
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
