"""Indexes of files, kept on disk: made once, and again when the file changes.

An index is a line of JSON (what it belongs to, where its columns are, their checksum), then its
columns. It is stored beside the shard in `.imagen_ft/`, or in the user's cache folder if that is
not writable.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import crc32c
import numpy as np
from etils import epath

from input_pipeline.records import byte_ranges
from input_pipeline.records.byte_ranges import ByteRanges
from launch import files

Columns = Mapping[str, np.ndarray]

_FORMAT = 1
_SAMPLES, _SAMPLE = 16, 4096  # places in a file, and bytes at each, that are compared


@dataclasses.dataclass(frozen=True)
class CacheKey:
    """What an index belongs to: a file in its present state, and a question about it."""

    path: str
    asked: str  # such as the name of the label field; each question has its own index
    size: int  # bytes
    changed: str  # see `ByteRanges`

    @classmethod
    def of_file(cls, path: str, asked: str) -> "CacheKey":
        """The key of the file at a path; FileNotFoundError if there is none."""
        with byte_ranges.opened(path) as file:
            return cls(path, asked, file.size(), file.changed())

    def sample(self) -> str:
        """A checksum of parts of the content: a copy has another time, but keeps its index."""
        with byte_ranges.opened(self.path) as file:
            return _sample(file, self.size)

    def paths(self) -> list[epath.Path]:
        """Where its index may be, best first."""
        name = f"{os.path.basename(self.path)}.{self.asked}.index"
        # In the cache folder, equal names in different folders need different places.
        path = os.path.abspath(self.path) if files.is_local(self.path) else self.path
        folder = os.path.dirname(path)
        digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
        beside = epath.Path(folder) / ".imagen_ft" / name
        return [beside, epath.Path(files.cache_folder("index")) / digest / name]


def _sample(file: ByteRanges, size: int) -> str:
    digest = hashlib.sha256(str(size).encode())
    # Evenly spaced from the first to the last bytes.
    for offset in sorted({int(at) for at in np.linspace(0, max(0, size - _SAMPLE), _SAMPLES)}):
        digest.update(file.read(offset, min(_SAMPLE, size - offset)))
    return digest.hexdigest()


def load(key: CacheKey, names: tuple[str, ...]) -> dict[str, np.ndarray] | None:
    """Columns of a shard's index by name; None if it is missing, damaged or of other content."""
    for path in key.paths():
        try:
            data = path.read_bytes()
        except OSError:
            continue
        columns = _parse(data, key, names)
        if columns is not None:
            return columns
    return None


def _parse(data: bytes, key: CacheKey, names: tuple[str, ...]) -> dict[str, np.ndarray] | None:
    line, _, body = data.partition(b"\n")
    # 1. The header. Anything unexpected means: make the index again.
    try:
        header = json.loads(line)
        fixed = (header["format"], header["shard"], header["asked"], header["size"])
        crc, written, sample = header["crc"], header["changed"], header["sample"]
        described = header["columns"]
    except (KeyError, RecursionError, TypeError, ValueError):
        return None
    # 2. Of this file and question, and undamaged.
    if fixed != (_FORMAT, os.path.basename(key.path), key.asked, key.size):
        return None
    if crc32c.crc32c(json.dumps(described).encode() + body) != crc:
        return None
    # 3. Of this content: the same time, or else (a copy) the same samples.
    if written != key.changed and sample != key.sample():
        return None
    # 4. Only the columns asked for are copied out.
    columns = {}
    for name in names:
        dtype, shape, offset = described[name]
        count = int(np.prod(shape))
        columns[name] = np.frombuffer(body, np.dtype(dtype), count, offset).reshape(shape).copy()
    return columns


def save(key: CacheKey, columns: Columns) -> OSError | None:
    """Stores an index, whole or not at all; returns why no place was writable, else None."""
    # 1. Columns one after the other; the header says where each starts.
    described: dict[str, list[Any]] = {}
    body = b""
    for name, column in columns.items():
        described[name] = [column.dtype.str, list(column.shape), len(body)]
        body += column.tobytes()
    header = dict(format=_FORMAT, shard=os.path.basename(key.path), asked=key.asked)
    header |= dict(size=key.size, changed=key.changed, sample=key.sample())
    header |= dict(columns=described, crc=crc32c.crc32c(json.dumps(described).encode() + body))
    # 2. The first place that is writable.
    failed = None
    for path in key.paths():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_atomic(path, json.dumps(header).encode() + b"\n" + body)
        except OSError as error:
            failed = error
        else:
            return None
    return failed
