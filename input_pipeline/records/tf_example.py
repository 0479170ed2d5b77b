"""Records as tf.train.Example messages, without TensorFlow."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from launch.errors import InputError

Value = bytes | str | int | float | np.integer | np.floating


@functools.cache
def load_messages() -> tuple[Any, Any]:
    """The protobuf classes; call it before starting threads that read or write records."""
    # Imported late: it takes half a second. Meanwhile etils replaces `__import__` for all threads,
    # so an import of JAX in another thread fails.
    from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

    return tf_example_pb2.Example, tf_feature_pb2


def encode_example(values: Mapping[str, Value | Sequence[Value]]) -> bytes:
    """Serialises one record; the same values give the same bytes.

    Each value is one or a sequence of bytes, text, integers or floats, else TypeError. Texts are
    stored as UTF-8; file names that are not UTF-8 keep their bytes.
    """
    example = load_messages()[0]()
    for name, value in values.items():
        example.features.feature[name].CopyFrom(_feature(name, value))
    return example.SerializeToString(deterministic=True)  # sorts the map's keys


def _feature(name: str, value: Any) -> Any:
    proto = load_messages()[1]
    # The format has lists only: a scalar is a list of one.
    scalar = isinstance(value, bytes | str) or np.ndim(value) == 0
    items: list[Any] = [value] if scalar else list(value)
    # File names that are not UTF-8 hold surrogate escapes, which become their bytes again.
    if all(isinstance(item, bytes | str) for item in items):
        items = [
            item.encode(errors="surrogateescape") if isinstance(item, str) else item
            for item in items
        ]
        return proto.Feature(bytes_list=proto.BytesList(value=items))
    if all(isinstance(item, int | np.integer) for item in items):
        return proto.Feature(int64_list=proto.Int64List(value=items))
    if all(isinstance(item, int | float | np.number) for item in items):
        return proto.Feature(float_list=proto.FloatList(value=items))
    raise TypeError(f"{name}: expected bytes, text, integers or floats, got {value!r}")


def decode_example(data: bytes) -> dict[str, list[Any]]:
    """Name -> list of bytes (also for texts), int or float; InputError if it is another message."""
    from google.protobuf.message import DecodeError

    try:
        features = load_messages()[0].FromString(data).features.feature
    except DecodeError:
        raise InputError("not a tf.train.Example; write this shard again") from None
    decoded = {}
    for name, feature in features.items():
        kind = feature.WhichOneof("kind")
        # A field without values has no kind.
        decoded[name] = list(getattr(feature, kind).value) if kind else []
    return decoded
