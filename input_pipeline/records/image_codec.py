"""Images as the bytes of PNG and JPEG files, and back."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8

from launch.errors import InputError

# Images are read and written by threads of our own, one a core: OpenCV's would fight with them.
cv2.setNumThreads(1)
# What it says of a damaged file on stderr, an error says in one line that names the file.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
_HALF_CHROMA = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420


def encode_png(image: np.ndarray) -> bytes:
    """Encodes an image of 1 or 3 channels (RGB), values [0, 255], as PNG."""
    return _encode(".png", image, [])


def encode_jpeg(image: UInt8[np.ndarray, "h w c"], quality: int) -> bytes:
    """Encodes an image of 1 or 3 channels (RGB), values [0, 255], as JPEG.

    Args:
        image: to be encoded.
        quality: 1 to 100; colours keep their resolution from 90 on.
    """
    chroma = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444 if quality >= 90 else _HALF_CHROMA
    options = (cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, chroma)
    return _encode(".jpg", image, options)


def encode_bmp(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Encodes an RGB image as BMP: not compressed, so decoded ten times as fast as JPEG."""
    return _encode(".bmp", image, [])


def _encode(suffix: str, image: np.ndarray, options: Sequence[int]) -> bytes:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise TypeError(f"expected uint8 [h, w, 1 or 3], got {image.dtype} {image.shape}")
    pixels = image if image.shape[-1] == 1 else image[..., ::-1]
    return cv2.imencode(suffix, np.ascontiguousarray(pixels), options)[1].tobytes()


def decode_image(data: bytes, channels: int, upright: bool = False) -> UInt8[np.ndarray, "h w c"]:
    """Decodes PNG, JPEG or any format that OpenCV reads.

    Args:
        data: the file's bytes.
        channels: 1 (grey) or 3 (RGB), whatever the file holds.
        upright: turns and mirrors the image as the file's EXIF orientation says, which is otherwise
            ignored.

    Returns:
        Values [0, 255].

    Raises:
        InputError: the bytes are no image.
    """
    colour = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR}[channels]
    pixels = None
    if data:
        flags = colour if upright else colour | cv2.IMREAD_IGNORE_ORIENTATION
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None:
        raise InputError(
            f"OpenCV cannot decode these {len(data)} bytes as an image; convert it to JPEG "
            "or PNG, or remove it"
        )
    # NumPy's copy in reverse order takes as long as decoding does.
    return pixels[..., None] if channels == 1 else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
