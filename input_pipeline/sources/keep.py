"""Lists of records to keep: what a filter has left of a set."""

import numpy as np
from etils import epath
from jaxtyping import Int64

from input_pipeline.source import Source
from launch import files
from launch.errors import InputError


def find_keys(source: Source, path: epath.PathLike) -> Int64[np.ndarray, " m"]:
    """Indices of the records of a source whose keys a file lists, ascending.

    Args:
        source: its method `key` gives the name of each record.
        path: a JSON list if it ends in `.json`, else text with one key a line.

    Raises:
        InputError: there is no such file, it lists no key, one twice, or one that the source has
            not; the first such is named.
    """
    keys = _read_keys(path)
    wanted: set[str] = set()
    for key in keys:
        if key in wanted:
            raise InputError(f"{path}: lists {key!r} twice; list it once")
        wanted.add(key)
    # Only what is listed is held: of a large set, names of all records would be gigabytes.
    indices = [i for i in range(len(source)) if source.key(i) in wanted]
    if unknown := wanted.difference(source.key(i) for i in indices):
        first = next(key for key in keys if key in unknown)
        like = f" (the first it has is {source.key(0)!r})" if len(source) else ""
        raise InputError(f"{path}: the source has no record {first!r}{like}; make the list from it")
    return np.array(indices, np.int64)


def _read_keys(path: epath.PathLike) -> list[str]:
    path = epath.Path(path)
    if path.suffix == ".json":
        keys = files.read_json(path)
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise InputError(f"{path}: no JSON list of texts; write one, or a text of a key a line")
    else:
        try:
            # Names of files need not be UTF-8; this is how Python lists the others.
            text = path.read_bytes().decode("utf-8", "surrogateescape")
        except (FileNotFoundError, IsADirectoryError):
            raise InputError(f"{path}: no such file of keys; check keep") from None
        keys = [line.removesuffix("\r") for line in text.split("\n") if line.strip()]
    if not keys:
        raise InputError(f"{path}: lists no key, so nothing would be kept; leave keep out")
    return keys
