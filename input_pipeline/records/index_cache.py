"""What a file says without its images, kept on disk: made once, and again when the file changes.

An index is a line of JSON (what it is of, where its columns are, their checksum) and its columns.
It lies beside the shard in `.imagen_ft/`, or in the user's cache folder where that is not writable.
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
_SAMPLES, _SAMPLE = 16, 4096  # points of a file, and bytes at each, that tell it from another


@dataclasses.dataclass(frozen=True)
class CacheKey:
    """What an index is kept under: a file as it is now, and what is asked of it.

    Attributes:
        path: of the file.
        asked: for example the name of the label field; another question has another index.
        size: bytes.
        changed: see `ByteRanges`.
    """

    path: str
    asked: str
    size: int
    changed: str

    @classmethod
    def of_file(cls, path: str, asked: str) -> "CacheKey":
        """The key of the file at a path.

        Raises:
            FileNotFoundError: there is none.
        """
        with byte_ranges.opened(path) as file:
            return cls(path, asked, file.size(), file.changed())

    def sample(self) -> str:
        """Digest of parts of its content: a copy has another time, and still the same index."""
        with byte_ranges.opened(self.path) as file:
            return _sample(file, self.size)

    def paths(self) -> list[epath.Path]:
        """Where its index may be, best first."""
        name = f"{os.path.basename(self.path)}.{self.asked}.index"
        path = os.path.abspath(self.path) if files.is_local(self.path) else self.path
        folder = os.path.dirname(path)
        digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
        beside = epath.Path(folder) / ".imagen_ft" / name
        return [beside, epath.Path(files.cache_folder("index")) / digest / name]


def _sample(file: ByteRanges, size: int) -> str:
    digest = hashlib.sha256(str(size).encode())
    for offset in sorted({int(at) for at in np.linspace(0, max(0, size - _SAMPLE), _SAMPLES)}):
        digest.update(file.read(offset, min(_SAMPLE, size - offset)))
    return digest.hexdigest()


def load(key: CacheKey, names: tuple[str, ...]) -> dict[str, np.ndarray] | None:
    """Reads columns of a shard's index.

    Returns:
        Name -> column; None if there is no index, or it is damaged, or of other content.
    """
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
    try:
        header = json.loads(line)
        fixed = (header["format"], header["shard"], header["asked"], header["size"])
        crc, written, sample = header["crc"], header["changed"], header["sample"]
        described = header["columns"]
    except (KeyError, RecursionError, TypeError, ValueError):
        return None
    if fixed != (_FORMAT, os.path.basename(key.path), key.asked, key.size):
        return None
    if crc32c.crc32c(json.dumps(described).encode() + body) != crc:
        return None
    if written != key.changed and sample != key.sample():
        return None
    columns = {}
    for name in names:
        dtype, shape, offset = described[name]
        count = int(np.prod(shape))
        columns[name] = np.frombuffer(body, np.dtype(dtype), count, offset).reshape(shape).copy()
    return columns


def save(key: CacheKey, columns: Columns) -> OSError | None:
    """Keeps an index, complete or not at all.

    Returns:
        Why no path could be written to; None if one could.
    """
    described: dict[str, list[Any]] = {}
    body = b""
    for name, column in columns.items():
        described[name] = [column.dtype.str, list(column.shape), len(body)]
        body += column.tobytes()
    header = dict(format=_FORMAT, shard=os.path.basename(key.path), asked=key.asked)
    header |= dict(size=key.size, changed=key.changed, sample=key.sample())
    header |= dict(columns=described, crc=crc32c.crc32c(json.dumps(described).encode() + body))
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
