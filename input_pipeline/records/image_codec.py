"""Encodes and decodes images as PNG, JPEG and BMP."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8

from launch.errors import InputError

# Our own threads, one per core, encode and decode images: OpenCV's would compete with them.
cv2.setNumThreads(1)
# Damaged files become an error that names the file, so OpenCV need not print on stderr.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
_HALF_CHROMA = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420


def encode_png(image: np.ndarray) -> bytes:
    """Encodes uint8 [h, w, 1 or 3] (RGB) as PNG."""
    return _encode(".png", image, [])


def encode_jpeg(image: UInt8[np.ndarray, "h w c"], quality: int) -> bytes:
    """Encodes uint8 [h, w, 1 or 3] (RGB) as JPEG of quality 1 to 100; full chroma from 90 on."""
    chroma = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444 if quality >= 90 else _HALF_CHROMA
    options = (cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, chroma)
    return _encode(".jpg", image, options)


def encode_bmp(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Encodes RGB as BMP, uncompressed: it decodes ten times as fast as JPEG."""
    return _encode(".bmp", image, [])


def _encode(suffix: str, image: np.ndarray, options: Sequence[int]) -> bytes:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise TypeError(f"expected uint8 [h, w, 1 or 3], got {image.dtype} {image.shape}")
    # OpenCV's order is BGR.
    pixels = image if image.shape[-1] == 1 else image[..., ::-1]
    return cv2.imencode(suffix, np.ascontiguousarray(pixels), options)[1].tobytes()


def decode_image(data: bytes, channels: int, upright: bool = False) -> UInt8[np.ndarray, "h w c"]:
    """Decodes any format that OpenCV reads to `channels` 1 (grey) or 3 (RGB), in [0, 255].

    `upright` turns and mirrors the image as its EXIF orientation says, which is ignored otherwise.
    Raises InputError if the bytes are not an image.
    """
    colour = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR}[channels]
    pixels = None
    if data:
        flags = colour if upright else colour | cv2.IMREAD_IGNORE_ORIENTATION
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None:
        raise InputError(
            f"OpenCV cannot decode the {len(data)} bytes of this image; convert it to JPEG or PNG, "
            "or remove it"
        )
    # cvtColor, as copying pixels[..., ::-1] takes as long as decoding.
    return pixels[..., None] if channels == 1 else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
