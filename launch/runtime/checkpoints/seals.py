"""Seals: a digest of every file of a finished folder, made and checked by all processes together.

On a disk it is SHA-256. In an object store it is the checksum that the store computed when it
received the file: reading a checkpoint back would take more than the 30 seconds that a preempted
machine has.

Orbax checks no contents (65 of 65 flipped bits went unnoticed), so we do. Process i of n writes
`digests_i_of_n.json`, with the digests of each n-th file and one of its own text; a folder is
sealed when all n are there. Any number of processes can check it.
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
    """Writes one process's share of a folder's seal; no collective, so it can run in a thread.

    Args:
        folder: its files are complete and change no more.
        index: of this process.
        count: of processes, each of which has to call this.
        facts: JSON to keep with the digests; those of process 0 count.
    """
    folder = epath.Path(folder)
    digests = _digests(folder, _files(folder)[index::count])
    body = {"files": digests, "facts": dict(facts)}
    write_atomic(folder / _share_name(index, count), _text(body))


def is_sealed(folder: epath.PathLike) -> bool:
    """Whether all shares of the folder's seal are there; says nothing about what they hold."""
    try:
        return not _missing_share(epath.Path(folder))
    except OSError:
        return False


def is_cut_off(folder: epath.PathLike) -> bool:
    """Whether a share is missing. What cannot be read was not cut off, as far as anyone knows."""
    try:
        return bool(_missing_share(epath.Path(folder)))
    except OSError:
        return False


def break_seal(folder: epath.PathLike) -> None:
    """Removes the seal, so that a folder that is half removed counts no more."""
    folder = epath.Path(folder)
    for name in _share_names(folder):
        share = folder / name
        share.rmtree() if share.is_dir() else share.unlink()


def read_facts(folder: epath.PathLike) -> dict[str, Any]:
    """The facts of a sealed folder.

    Raises:
        InputError: the seal is damaged, or cannot be read.
    """
    folder = epath.Path(folder)
    try:
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
    """Compares a folder with its seal: what is wrong with it, or None.

    What a disk cannot read is a fault as well. A store that does not answer, or forbids it, says
    nothing of what it holds: that is raised.

    Args:
        folder: to check.
        index: of this process, which hashes its share of the files.
        count: of processes that check; what one finds the others do not know.
        expected_facts: what has to be among the facts.
    """
    try:
        return _find_fault(epath.Path(folder), index, count, expected_facts)
    except OSError as error:
        if store_failure(error):
            raise
        return _unreadable(epath.Path(folder), error)


def check_facts(facts: Mapping[str, Any], expected: Mapping[str, Any], folder: epath.Path) -> None:
    """Looks whether a seal is of what is expected there.

    Raises:
        InputError: names the fact that is another one.
    """
    for name, value in expected.items():
        if name not in facts:
            raise InputError(f"{folder} has the seal of an older version, without its {name}")
        if facts[name] != value:
            raise InputError(
                f"{folder}: {name} must be {value}, got {facts[name]}; it was copied from elsewhere"
            )


def _unreadable(folder: epath.Path, error: OSError) -> str:
    return f"{error.filename or folder} cannot be read ({error.strerror or error})"


def _find_fault(
    folder: epath.Path, index: int, count: int, expected_facts: Mapping[str, Any]
) -> str | None:
    missing = _missing_share(folder)
    if missing:
        return f"{folder} is not sealed ({missing} is missing)"
    names = _share_names(folder)
    if len({_SHARE_NAME.sub(r"\2", name) for name in names}) > 1:
        return f"{folder} has the seals of two saves ({', '.join(names)})"
    expected: dict[str, str] = {}
    try:
        for name in names:
            expected |= _read_share(folder / name)["files"]
        check_facts(read_facts(folder), expected_facts, folder)
    except InputError as error:
        return str(error)
    present = _files(folder)
    for name in sorted(expected.keys() ^ set(present)):
        said = "is missing" if name in expected else "is not one of the checkpoint's files"
        return f"{folder / name} {said}"
    for name, digest in _digests(folder, present[index::count]).items():
        if digest != expected[name]:
            return f"{folder / name} is damaged (its checksum differs)"
    return None


def find_fault_together(
    folder: epath.PathLike, expected_facts: Mapping[str, Any] = MappingProxyType({})
) -> str | None:
    """`find_fault` by all processes of this job, with the same answer on each."""
    fault = find_fault(folder, jax.process_index(), jax.process_count(), expected_facts)
    return next(filter(None, gather_texts(fault or "")), None)


def _share_name(index: int, count: int) -> str:
    return f"digests_{index}_of_{count}.json"


def _share_names(folder: epath.Path) -> list[str]:
    return [path.name for path in entries(folder) if _SHARE_NAME.fullmatch(path.name)]


def _missing_share(folder: epath.Path) -> str:
    """The first name that is not there; empty when nothing is missing."""
    there = set(_share_names(folder))
    counts = [int(_SHARE_NAME.sub(r"\2", name)) for name in there]
    names = (_share_name(index, max(counts, default=1)) for index in range(max(counts, default=1)))
    return next((name for name in names if name not in there), "")


def _files(folder: epath.Path) -> list[str]:
    # Nor what another process has begun to write of its share.
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
    own = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**body, "sha256": own}, indent=2, sort_keys=True) + "\n").encode()


def _read_share(path: epath.Path) -> dict[str, Any]:
    data = path.read_bytes()
    try:
        body = json.loads(data)
        body.pop("sha256")
        whole = _text(body) == data  # bit by bit: no other spelling passes, either
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise InputError(f"{path} is damaged (its checksum differs)")
    return body
