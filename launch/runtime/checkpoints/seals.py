"""Seals: checksums of all files of a finished folder, made and checked by all processes together.

Orbax checks no contents (65 of 65 flipped bits went unnoticed). Process i of n writes
`digests_i_of_n.json`, with the checksums of every n-th file and of its own text; a folder is sealed
once all n exist. Any number of processes can check it.

On a disk the checksum is SHA-256. In an object store it is the one that the store computed on
upload: reading a checkpoint back takes longer than the 30 seconds that a preempted machine has.
"""

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import jax
from etils import epath

from launch.errors import InputError, store_failure
from launch.files import in_parallel, is_local, sha256, write_atomic
from launch.folders import checksums, entries, file_names
from launch.runtime.devices.distributed import gather_texts

_SHARE_NAME = re.compile(r"digests_(\d+)_of_(\d+)\.json")


def seal(folder: epath.PathLike, index: int, count: int, facts: Mapping[str, Any]) -> None:
    """Writes share `index` of `count` of the seal of a folder whose files change no more.

    Every process must call it. It makes no collective calls, so it can run in a thread. `facts` are
    JSON to keep with the checksums; those of process 0 count.
    """
    folder = epath.Path(folder)
    digests = _digests(folder, _files(folder)[index::count])
    body = {"files": digests, "facts": dict(facts)}
    write_atomic(folder / _share_name(index, count), _text(body))


def is_sealed(folder: epath.PathLike) -> bool:
    """Whether all shares of the seal exist; their contents are not checked."""
    try:
        return not _missing_share(epath.Path(folder))
    except OSError:
        return False


def is_cut_off(folder: epath.PathLike) -> bool:
    """Whether a share of the seal is missing; False for a folder that cannot be read."""
    try:
        return bool(_missing_share(epath.Path(folder)))
    except OSError:
        return False


def break_seal(folder: epath.PathLike) -> None:
    """Removes the seal, so that a half-removed folder does not count."""
    folder = epath.Path(folder)
    for name in _share_names(folder):
        share = folder / name
        share.rmtree() if share.is_dir() else share.unlink()


def read_facts(folder: epath.PathLike) -> dict[str, Any]:
    """The facts of a sealed folder; `InputError` if the seal is damaged or cannot be read."""
    folder = epath.Path(folder)
    try:
        # The first by name is that of process 0.
        return _read_share(folder / min(_share_names(folder)))["facts"]
    except OSError as error:
        if store_failure(error):
            raise
        raise InputError(_unreadable(folder, error)) from error


def find_fault(
    folder: epath.PathLike,
    index: int = 0,
    count: int = 1,
    expected_facts: Mapping[str, Any] = MappingProxyType({}),
) -> str | None:
    """What is wrong with a folder, compared with its seal, or None.

    This process hashes every `count`-th file from `index` on and knows only what it finds itself,
    see `find_fault_together`. A file that a disk cannot read is a fault; a store that does not
    answer or forbids access says nothing about its contents, so that raises.
    """
    try:
        return _find_fault(epath.Path(folder), index, count, expected_facts)
    except OSError as error:
        if store_failure(error):
            raise
        return _unreadable(epath.Path(folder), error)


def check_facts(facts: Mapping[str, Any], expected: Mapping[str, Any], folder: epath.Path) -> None:
    """Raises `InputError`, naming the fact, if a seal does not say what is expected of it."""
    for name, value in expected.items():
        if name not in facts:
            raise InputError(f"{folder} has the seal of an older version, without a {name}")
        if facts[name] != value:
            raise InputError(
                f"{folder}: {name} must be {value}, got {facts[name]}; it was copied from elsewhere"
            )


def _unreadable(folder: epath.Path, error: OSError) -> str:
    return f"{error.filename or folder} cannot be read ({error.strerror or error})"


def _find_fault(
    folder: epath.Path, index: int, count: int, expected_facts: Mapping[str, Any]
) -> str | None:
    # 1. Is the seal complete, and of one save?
    missing = _missing_share(folder)
    if missing:
        return f"{folder} is not sealed ({missing} is missing)"
    names = _share_names(folder)
    if len({_SHARE_NAME.sub(r"\2", name) for name in names}) > 1:
        return f"{folder} has the seals of two saves ({', '.join(names)})"
    # 2. Read its shares; do they say what is expected?
    expected: dict[str, str] = {}
    try:
        for name in names:
            expected |= _read_share(folder / name)["files"]
        check_facts(read_facts(folder), expected_facts, folder)
    except InputError as error:
        return str(error)
    # 3. Are exactly the sealed files there?
    present = _files(folder)
    for name in sorted(expected.keys() ^ set(present)):
        said = "is missing" if name in expected else "is not one of the checkpoint's files"
        return f"{folder / name} {said}"
    # 4. Do this process's files have their checksums?
    for name, digest in _digests(folder, present[index::count]).items():
        if digest != expected[name]:
            return f"{folder / name} is damaged (its checksum differs)"
    return None


def find_fault_together(
    folder: epath.PathLike, expected_facts: Mapping[str, Any] = MappingProxyType({})
) -> str | None:
    """`find_fault` shared by all processes of the job; all get the same answer."""
    fault = find_fault(folder, jax.process_index(), jax.process_count(), expected_facts)
    return next(filter(None, gather_texts(fault or "")), None)


def _share_name(index: int, count: int) -> str:
    return f"digests_{index}_of_{count}.json"


def _share_names(folder: epath.Path) -> list[str]:
    return [path.name for path in entries(folder) if _SHARE_NAME.fullmatch(path.name)]


def _missing_share(folder: epath.Path) -> str:
    # Every name says how many shares there must be.
    there = set(_share_names(folder))
    counts = [int(_SHARE_NAME.sub(r"\2", name)) for name in there]
    names = (_share_name(index, max(counts, default=1)) for index in range(max(counts, default=1)))
    return next((name for name in names if name not in there), "")


def _files(folder: epath.Path) -> list[str]:
    # Without the shares themselves, also those that another process is writing.
    names = file_names(folder)
    return [n for n in names if not (_SHARE_NAME.fullmatch(n) or n.startswith(".digests_"))]


def _digests(folder: epath.Path, names: Iterable[str]) -> dict[str, str]:
    names = list(names)
    if is_local(folder):
        return dict(zip(names, in_parallel(lambda n: sha256(folder / n), names), strict=True))
    known = checksums(folder)
    if missing := [name for name in names if name not in known]:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder / missing[0]))
    return {name: known[name] for name in names}


def _text(body: Mapping[str, Any]) -> bytes:
    # The checksum of a share covers its JSON without the checksum itself.
    own = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**body, "sha256": own}, indent=2, sort_keys=True) + "\n").encode()


def _read_share(path: epath.Path) -> dict[str, Any]:
    data = path.read_bytes()
    try:
        body = json.loads(data)
        body.pop("sha256")
        whole = _text(body) == data  # byte by byte: another spelling of the same JSON fails too
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise InputError(f"{path} is damaged (its checksum differs)")
    return body
