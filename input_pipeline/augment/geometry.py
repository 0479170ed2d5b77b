"""Images moved, sheared and rotated as Pillow does it: bilinear, with a fill colour outside."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8

Image = UInt8[np.ndarray, "h w c"]
Fill = float | Sequence[float]


def affine(image: Image, matrix: Sequence[float], fill: Fill) -> Image:
    """An affine transform of an image with 1 or 3 channels; keeps its shape.

    `matrix` is a, b, c, d, e, f: the pixel shown at (x, y) was at (a x + b y + c, d x + e y + f),
    in pixels from the upper left corner. `fill` is one value, or one per channel. The outermost
    half pixel fades into the fill colour, which Pillow cuts off sharply.
    """
    height, width, channels = image.shape
    a, b, c, d, e, f = matrix
    # Pillow's coordinates start at the corner of the first pixel, OpenCV's at its centre: shifting
    # both by 1/2 adds (a + b - 1) / 2 and (d + e - 1) / 2.
    inverse = np.array([[a, b, c + (a + b - 1) / 2], [d, e, f + (d + e - 1) / 2]])
    value = [*fill, 0.0] if isinstance(fill, Sequence) else [fill] * 4
    # OpenCV 5 takes half as long for four channels as for three.
    wide = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA) if channels == 3 else image
    moved = cv2.warpAffine(
        wide,
        inverse,
        (width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=value,
    )
    if channels == 3:
        return cv2.cvtColor(moved, cv2.COLOR_RGBA2RGB)
    return moved.reshape(image.shape)


def shear_x(image: Image, factor: float, fill: Fill) -> Image:
    """Moves row y to the left by factor * y."""
    return affine(image, (1, factor, 0, 0, 1, 0), fill)


def shear_y(image: Image, factor: float, fill: Fill) -> Image:
    """Moves column x up by factor * x."""
    return affine(image, (1, 0, 0, factor, 1, 0), fill)


def translate_x(image: Image, fraction: float, fill: Fill) -> Image:
    """Moves left by a fraction of the width."""
    return affine(image, (1, 0, fraction * image.shape[1], 0, 1, 0), fill)


def translate_y(image: Image, fraction: float, fill: Fill) -> Image:
    """Moves up by a fraction of the height."""
    return affine(image, (1, 0, 0, 0, 1, fraction * image.shape[0]), fill)


def rotate(image: Image, degrees: float, fill: Fill) -> Image:
    """Rotates counter-clockwise about the centre."""
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    y, x = image.shape[0] / 2, image.shape[1] / 2
    # The inverse rotation about (x, y), as `affine` maps shown pixels to source pixels.
    return affine(image, (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y), fill)
