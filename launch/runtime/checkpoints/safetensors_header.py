"""The header of a safetensors file: names, types, shapes and offsets of its tensors.

Source: https://github.com/huggingface/safetensors, Format.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from etils import epath

# By their names in headers.
DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": jnp.dtype(jnp.bfloat16),
    "I64": np.dtype(np.int64),
}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Size of the little-endian integer that precedes the header and holds its length.
LENGTH_BYTES = 8
_METADATA = "__metadata__"


class HeaderEntry(NamedTuple):
    """A tensor in a header; `start` and `end` are bytes, counted from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: epath.PathLike) -> bytes:
    """The JSON at the start of a local or remote file, padding included; less if cut short."""
    path = epath.Path(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        # A damaged length must not allocate exabytes.
        return file.read(min(length, path.stat().length))


def parse_header(header: bytes) -> tuple[dict[str, HeaderEntry], dict[str, str]]:
    """The tensors in the order of the file, and the metadata.

    A damaged header raises ValueError, TypeError or KeyError.
    """
    try:
        table = json.loads(header)
    except RecursionError:
        raise ValueError("a header is nested too deeply") from None
    if not isinstance(table, dict):
        raise ValueError("a header is a JSON object")
    metadata = table.pop(_METADATA, {})
    entries = {
        name: HeaderEntry(entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"])
        for name, entry in table.items()
    }
    return dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].end))), metadata


def make_header(tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> bytes:
    """A header as the safetensors library writes it: widest types first, then by name."""
    names = sorted(tensors, key=lambda name: (-tensors[name][1].itemsize, name))
    table: dict[str, Any] = {_METADATA: {"format": "pt"}}
    end = 0
    for name in names:
        shape, dtype = tensors[name]
        start, end = end, end + tensor_bytes(shape, dtype)
        offsets = [start, end]
        table[name] = {"dtype": _DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": offsets}
    header = json.dumps(table, separators=(",", ":")).encode()
    # Padded with spaces to a multiple of 8, so that tensors are aligned.
    return header + b" " * (-len(header) % 8)


def tensor_bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Bytes of a tensor in a file."""
    return math.prod(shape) * dtype.itemsize
