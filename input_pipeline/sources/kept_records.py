"""A source restricted to the records that a list names, such as a filter's."""

import hashlib
from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import Int64

from input_pipeline.source import Source, Subset, joined_digest
from launch import files
from launch.errors import InputError


class KeptRecords(Subset):
    """The records of a source whose keys a file lists, in the source's order."""

    def __init__(self, source: Source, path: epath.PathLike):
        """Reads a JSON list if `path` ends in `.json`, else text with one key a line.

        Raises InputError, naming the first key that is listed twice or that the source lacks.
        """
        data = _read(epath.Path(path))
        super().__init__(source, _find(source, _parse(data, epath.Path(path)), path))
        self._digest = hashlib.sha256(data).hexdigest()

    def digest(self) -> str | None:
        """Covers the whole source and the list."""
        return joined_digest((super().digest(), self._digest))


def _find(source: Source, keys: Sequence[str], path: epath.PathLike) -> Int64[np.ndarray, " m"]:
    listed: set[str] = set()
    for key in keys:
        if key in listed:
            raise InputError(f"{path} lists {key!r} twice; list it once")
        listed.add(key)
    # Ascending. Only the listed keys are held: all names of a large set would be gigabytes.
    indices = [i for i in range(len(source)) if source.key(i) in listed]
    # Every listed key must be a record: a list made from another set would silently keep less.
    if unknown := listed.difference(source.key(i) for i in indices):
        first = next(key for key in keys if key in unknown)
        like = f" (its first is {source.key(0)!r})" if len(source) else ""
        raise InputError(f"{path}: the source has no record {first!r}{like}; make the list from it")
    return np.array(indices, np.int64)


def _read(path: epath.Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{path}: no such file; check the field keep") from None


def _parse(data: bytes, path: epath.Path) -> list[str]:
    if path.suffix == ".json":
        keys = files.parse_json(data, path)
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise InputError(
                f"{path} must be a JSON list of strings, or a text file with one key per line"
            )
    else:
        # File names need not be UTF-8; surrogateescape is how Python lists such names.
        lines = data.decode("utf-8", "surrogateescape").split("\n")
        keys = [line.removesuffix("\r") for line in lines if line.strip()]
    if not keys:
        raise InputError(f"{path} lists no keys, so nothing would be kept; leave keep out")
    return keys
