"""Files that are either complete or absent, JSON, digests, and the cache folder."""

import concurrent.futures
import contextlib
import errno
import hashlib
import itertools
import json
import logging
import os
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec.config
import fsspec.core
from etils import epath

from launch.cpus import usable_cpus
from launch.errors import InputError

# For all that reach a store. gcsfs would go on to list what was there when this process looked
# first; and it logs errors, traceback and all, before it raises them.
fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
T = TypeVar("T")
R = TypeVar("R")
# What a file system says that knows no locks: NFS without lockd, Lustre without flock, some FUSE.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_NO_SYNC = (errno.EBADF, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EACCES)
_THREADS = min(16, 2 * usable_cpus())


def is_local(path: epath.PathLike) -> bool:
    """Whether the path is on a mounted file system, not in an object store such as `gs://`."""
    return "://" not in os.fspath(path)


def is_utf8(text: str) -> bool:
    """Whether reports and records can hold a name or a prompt, of which a byte may be no text."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def temporary_folder() -> str:
    """Where files go that nobody needs later: TMPDIR, or what the system has.

    Raises:
        InputError: there is no room anywhere.
    """
    try:
        return tempfile.gettempdir()
    except FileNotFoundError as error:
        raise InputError(f"TMPDIR: {error.strerror}; make room there, or set another one") from None


def cache_folder(name: str) -> Path:
    """Where this user's computer keeps what can be made again; may not be there yet.

    Args:
        name: of what is kept.

    Raises:
        InputError: the user has no home, and what stands for one is another's.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if base.startswith("~"):
        base = _private_folder()
    return Path(base, "imagen_ft", name)


def _private_folder() -> str:
    """A folder for a user without HOME and without an entry in passwd, as in containers."""
    path = Path(temporary_folder(), f"cache-{os.getuid()}")
    path.mkdir(mode=0o700, exist_ok=True)
    # Programs are kept in it, so nobody else may write there.
    if path.is_symlink() or path.stat().st_uid != os.getuid():
        raise InputError(
            f"{path} belongs to another user; set XDG_CACHE_HOME to a folder of your own"
        )
    return str(path)


@contextlib.contextmanager
def atomic_file(path: epath.PathLike) -> Iterator[BinaryIO]:
    """Opens a binary file that appears as `path` only if the block ends without an error.

    A local file is written beside its final name, flushed to the disk and renamed. An object store
    shows an object once its upload has ended, so there the bytes are collected locally first.

    Args:
        path: the final name, in a folder that exists.

    Yields:
        The file to write to.
    """
    if is_local(path):
        with _local_atomic_file(Path(path)) as file:
            yield file
    else:
        with tempfile.TemporaryDirectory(dir=temporary_folder()) as folder:
            source = os.path.join(folder, os.path.basename(path))
            with naming(folder), open(source, "wb") as file:
                yield file
            _upload(source, os.fspath(path))


def _upload(source: str, target: str) -> None:
    # Not through etils: closing what gcsfs has opened makes an object of what is there so far, also
    # after an error, and when nobody has it any more.
    store, name = fsspec.core.url_to_fs(target)
    try:
        store.put_file(source, name)
    except Exception as error:
        error.add_note(target)
        raise


@contextlib.contextmanager
def _local_atomic_file(path: Path) -> Iterator[BinaryIO]:
    with atomic_path(path) as temporary, naming(path), temporary.open("xb") as file:
        yield file


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A name for a library to write a local file to, which becomes `path` as in `atomic_file`.

    Args:
        path: the final name, in a folder that exists.

    Yields:
        A name beside it that is free; the file has to be closed when the block ends.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        with naming(path), temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Without this a power cut can undo a rename although the file itself is on the disk."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # It may be written to, and not be listed.
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Mounts over a network have no such call for folders.
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def naming(path: epath.PathLike) -> Iterator[None]:
    """Has an error of a file say which: writing and closing leave that out."""
    try:
        yield
    except OSError as error:
        # One without a number has a text, which a name would take the place of.
        if error.filename is None and error.errno is not None:
            error.filename = os.fspath(path)
        raise


def remove_temporaries(folder: epath.PathLike, name: str = "") -> None:
    """Removes what a killed process left half written beside `name` (all names if empty).

    Only the one process that may write these names can call it: it removes running work as well.
    """
    prefix = f".{name}." if name else "."
    if is_local(folder) and Path(folder).is_dir():
        for path in Path(folder).iterdir():
            if path.name.startswith(prefix) and path.name.endswith(".tmp"):
                path.unlink(missing_ok=True)


def in_parallel(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """The results for all items, in order; several threads, for what waits for files or hashes."""
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(function, items))


def write_atomic(path: epath.PathLike, data: bytes) -> None:
    """Writes a whole file that is either complete or absent under its name."""
    with atomic_file(path) as file:
        file.write(data)


def write_json(path: epath.PathLike, obj: Any) -> None:
    """Writes JSON with sorted keys, complete or not at all."""
    write_atomic(path, (json.dumps(obj, indent=2, sort_keys=True) + "\n").encode())


def read_json(path: epath.PathLike) -> Any:
    """Reads a JSON file.

    Raises:
        InputError: it is missing, or it is not JSON.
    """
    try:
        data = epath.Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    return parse_json(data, path)


def parse_json(data: bytes, path: epath.PathLike) -> Any:
    """What the bytes of a JSON file hold.

    Args:
        data: all of them.
        path: of the file, for messages.

    Raises:
        InputError: they are not JSON.
    """
    try:
        return json.loads(data)
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as error:  # Also text that is not UTF-8, and integers of 4,300 digits.
        reason = str(error)
    raise InputError(f"{path}: not JSON ({reason}); restore it or write it again")


def read_object(path: epath.PathLike) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
        InputError: it is missing, it is not JSON, or holds something else.
    """
    return _object(read_json(path), path)


def parse_object(data: bytes, path: epath.PathLike) -> dict[str, Any]:
    """As `parse_json`, of a file that holds an object."""
    return _object(parse_json(data, path), path)


def _object(content: Any, path: epath.PathLike) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise InputError(
            f"{path} must be a JSON object, got something else; restore it or write it again"
        )
    return content


def read_fields(path: epath.PathLike, **kinds: Any) -> dict[str, Any]:
    """Reads a JSON file that holds an object, and looks at some of its fields.

    Args:
        path: of the file.
        **kinds: the type of each, as `isinstance` takes it.

    Raises:
        InputError: as `read_object`, or a field is missing or of another type.
    """
    content = read_object(path)
    for name, kind in kinds.items():
        if not isinstance(content.get(name), kind):
            raise InputError(f"{path} has no valid {name!r}; restore it or make it again")
    return content


def json_digest(obj: Any) -> str:
    """SHA-256 of what JSON says of an object, however it is laid out."""
    text = json.dumps(obj, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class Nothing:
    """What `differences` has for a field that is missing."""

    def __repr__(self) -> str:
        return "nothing"


NOTHING = Nothing()
# Elements of lists that are shown as a whole.
_SHOWN = 10


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The fields in which two nested dicts differ, such as a config and the one on disk.

    Args:
        old: JSON, or what `plain` makes of a config: tuples and lists differ.
        new: as `old`.

    Returns:
        By dotted path, in order, the values of both; `NOTHING` where a field is missing. An empty
        dict is one that is missing. Of long lists the first elements that differ, `names[3]`.
    """
    changed: dict[str, tuple[Any, Any]] = {}
    for key in sorted(old.keys() | new.keys()):
        before, now = old.get(key, NOTHING), new.get(key, NOTHING)
        inside = [{} if value is NOTHING else value for value in (before, now)]
        if before != now and all(isinstance(value, dict) for value in inside):
            changed |= {f"{key}.{path}": pair for path, pair in differences(*inside).items()}
        elif before != now:
            at = _first_difference(before, now)
            path = key if at is None else f"{key}[{at}]"
            changed[path] = (before, now) if at is None else _pairs(before, now)[at]
    return changed


def _pairs(old: Sequence[Any], new: Sequence[Any]) -> list[tuple[Any, Any]]:
    return list(itertools.zip_longest(old, new, fillvalue=NOTHING))


def _first_difference(old: Any, new: Any) -> int | None:
    """Of two lists of which one is too long for a message; None for all else."""
    if not all(isinstance(value, list | tuple) for value in (old, new)):
        return None
    if max(len(old), len(new)) <= _SHOWN:
        return None
    return next((i for i, (a, b) in enumerate(_pairs(old, new)) if a != b), None)


def write_sealed(path: epath.PathLike, obj: dict[str, Any]) -> None:
    """Writes a JSON object with its own digest in the field `digest`, which it has not itself."""
    assert "digest" not in obj, f"{path}: the field 'digest' is reserved"
    write_json(path, {**obj, "digest": json_digest(obj)})


def read_sealed(path: epath.PathLike) -> dict[str, Any]:
    """Reads what `write_sealed` wrote, without the digest.

    Raises:
        InputError: it is missing, or not what was written.
    """
    content = read_object(path)
    if "digest" not in content:
        raise InputError(
            f"{path} has no checksum; it is damaged or from an older version, make it again"
        )
    if content.pop("digest") != json_digest(content):
        raise InputError(f"{path} is damaged (its checksum differs); restore it")
    return content


def sha256(path: epath.PathLike) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with epath.Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
