"""Records: tf.train.Example messages and encoded images, without TensorFlow."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from launch.errors import InputError

Value = bytes | str | int | float | np.integer | np.floating
# Images are read and written by threads of our own, one a core: OpenCV's would fight with them.
cv2.setNumThreads(1)
_HALF_CHROMA = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420


@functools.cache
def load_messages() -> tuple[Any, Any]:
    """The messages of a record; whoever reads or writes records in threads calls it before.

    While tensorflow_datasets is imported, etils replaces Python's `__import__` for all threads, and
    what JAX imports in another one meanwhile fails. It takes half a second, which tasks without
    records save.
    """
    from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

    return tf_example_pb2.Example, tf_feature_pb2


def encode_example(values: Mapping[str, Value | Sequence[Value]]) -> bytes:
    """Serialises one record as a tf.train.Example; the same values give the same bytes.

    Args:
        values: name -> value or sequence of values of one kind. Texts are stored as UTF-8.

    Raises:
        TypeError: a value is of another kind.
    """
    example = load_messages()[0]()
    for name, value in values.items():
        example.features.feature[name].CopyFrom(_feature(name, value))
    return example.SerializeToString(deterministic=True)


def _feature(name: str, value: Value | Sequence[Value]):
    proto = load_messages()[1]
    scalar = isinstance(value, bytes | str) or np.ndim(value) == 0
    items = [value] if scalar else list(value)
    if all(isinstance(item, bytes | str) for item in items):
        items = [item.encode() if isinstance(item, str) else item for item in items]
        return proto.Feature(bytes_list=proto.BytesList(value=items))
    if all(isinstance(item, int | np.integer) for item in items):
        return proto.Feature(int64_list=proto.Int64List(value=items))
    if all(isinstance(item, int | float | np.number) for item in items):
        return proto.Feature(float_list=proto.FloatList(value=items))
    raise TypeError(f"{name}: expected bytes, text, integers or floats, got {value!r}")


def decode_example(data: bytes) -> dict[str, list[Any]]:
    """Parses a tf.train.Example.

    Returns:
        Name -> list of bytes (texts as well), int or float; the format has no scalars.

    Raises:
        InputError: the bytes are no tf.train.Example.
    """
    from google.protobuf.message import DecodeError

    try:
        features = load_messages()[0].FromString(data).features.feature
    except DecodeError:
        raise InputError("not a tf.train.Example; write this shard again") from None
    decoded = {}
    for name, feature in features.items():
        kind = feature.WhichOneof("kind")
        decoded[name] = list(getattr(feature, kind).value) if kind else []
    return decoded


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


def _encode(suffix: str, image: UInt8[np.ndarray, "h w c"], options: Sequence[int]) -> bytes:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise TypeError(f"expected uint8 [h, w, 1 or 3], got {image.dtype} {image.shape}")
    pixels = image if image.shape[-1] == 1 else image[..., ::-1]
    return cv2.imencode(suffix, np.ascontiguousarray(pixels), options)[1].tobytes()


def decode_image(data: bytes, channels: int) -> UInt8[np.ndarray, "h w c"]:
    """Decodes PNG, JPEG or any format that OpenCV reads.

    Args:
        data: the file's bytes; an orientation tag in it is ignored.
        channels: 1 (grey) or 3 (RGB), whatever the file holds.

    Returns:
        Values [0, 255].

    Raises:
        InputError: the bytes are no image.
    """
    colour = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR}[channels]
    pixels = None
    if data:
        flags = colour | cv2.IMREAD_IGNORE_ORIENTATION
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None:
        raise InputError(f"{len(data)} bytes that are no image OpenCV decodes; write them again")
    # NumPy's copy in reverse order takes as long as decoding does.
    return pixels[..., None] if channels == 1 else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
