"""Files that are either complete or absent, JSON, checksums, and the cache folder."""

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

# For every module that reaches a store. gcsfs would keep listing what was there when this process
# first looked; and it logs errors, with tracebacks, before it raises them.
fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
T = TypeVar("T")
R = TypeVar("R")
# From file systems without locks: NFS without lockd, Lustre without flock, some FUSE mounts.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
# From file systems that cannot sync a folder: some network and FUSE mounts.
_NO_SYNC = (errno.EBADF, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EACCES)
_THREADS = min(16, 2 * usable_cpus())  # for waiting on files and hashing, which releases the GIL


def is_local(path: epath.PathLike) -> bool:
    """Whether the path is on a mounted file system, not in an object store such as `gs://`."""
    return "://" not in os.fspath(path)


def is_utf8(text: str) -> bool:
    """False for names and prompts with bytes that are no text, which reports could not hold."""
    # Python decodes each such byte of a file name or argument to a lone surrogate (PEP 383).
    return not any("\ud800" <= character <= "\udfff" for character in text)


def temporary_folder() -> str:
    """TMPDIR or the system's folder for temporary files; `InputError` if no disk has room."""
    try:
        return tempfile.gettempdir()
    except FileNotFoundError as error:
        raise InputError(f"TMPDIR: {error.strerror}; make room there, or set another one") from None


def cache_folder(name: str) -> Path:
    """The user's folder for files that can be made again; it may not exist yet.

    Raises `InputError` for a user without a home if another user owns the folder used instead.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if base.startswith("~"):
        base = _private_folder()
    return Path(base, "imagen_ft", name)


def _private_folder() -> str:
    """A folder for users without HOME and without an entry in passwd, as in containers."""
    path = Path(temporary_folder(), f"cache-{os.getuid()}")
    path.mkdir(mode=0o700, exist_ok=True)
    # Programs are kept in it (JAX's compilation cache), so nobody else may write there.
    if path.is_symlink() or path.stat().st_uid != os.getuid():
        raise InputError(
            f"{path} belongs to another user; set XDG_CACHE_HOME to a folder of your own"
        )
    return str(path)


@contextlib.contextmanager
def atomic_file(path: epath.PathLike) -> Iterator[BinaryIO]:
    """Opens a binary file that appears as `path` only if the block ends without an error.

    The folder of `path` must exist.
    """
    # A local file is written beside its final name, synced and renamed.
    if is_local(path):
        with _local_atomic_file(Path(path)) as file:
            yield file
    else:
        # A store shows an object once its upload is complete: so collect the bytes here first.
        with tempfile.TemporaryDirectory(dir=temporary_folder()) as folder:
            source = os.path.join(folder, os.path.basename(path))
            with naming(folder), open(source, "wb") as file:
                yield file
            _upload(source, os.fspath(path))


def _upload(source: str, target: str) -> None:
    # Not through etils: when a file that gcsfs opened is closed, what was written so far becomes
    # an object, even after an error, and even if it is closed by the garbage collector.
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
    """Yields a free name beside `path` for a library to write to, renamed to `path` at the end.

    As `atomic_file`, for local files. The library must have closed the file when the block ends.
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
    """Makes a rename last: without this a power cut can undo it though the file is on the disk."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # The folder may be writable but not readable.
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Network mounts may not offer this for folders.
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def naming(path: epath.PathLike) -> Iterator[None]:
    """Adds the path to errors that lack it, such as those of writing and closing."""
    try:
        yield
    except OSError as error:
        # Without a number, the error has a message, which a file name would replace.
        if error.filename is None and error.errno is not None:
            error.filename = os.fspath(path)
        raise


def remove_temporaries(folder: epath.PathLike, name: str = "") -> None:
    """Removes half-written files that a killed process left beside `name` (beside all if empty).

    Only for the one process that may write these names: files being written are removed too.
    """
    prefix = f".{name}." if name else "."
    if is_local(folder) and Path(folder).is_dir():
        for path in Path(folder).iterdir():
            if path.name.startswith(prefix) and path.name.endswith(".tmp"):
                path.unlink(missing_ok=True)


def in_parallel(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Maps in several threads, for work that waits on files or hashes; keeps the order."""
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(function, items))


def write_atomic(path: epath.PathLike, data: bytes) -> None:
    """Writes a file that is either complete or absent."""
    with atomic_file(path) as file:
        file.write(data)


def write_json(path: epath.PathLike, obj: Any) -> None:
    """Writes JSON with sorted keys, as `write_atomic` does."""
    write_atomic(path, (json.dumps(obj, indent=2, sort_keys=True) + "\n").encode())


def read_json(path: epath.PathLike) -> Any:
    """Reads a JSON file; raises `InputError` if it is missing or not JSON."""
    try:
        data = epath.Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    return parse_json(data, path)


def parse_json(data: bytes, path: epath.PathLike) -> Any:
    """Parses a JSON file's content; raises `InputError` with `path` if it is not JSON."""
    try:
        return json.loads(data)
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as error:  # Includes text that is not UTF-8 and integers of 4,300 digits.
        reason = str(error)
    raise InputError(f"{path}: not JSON ({reason}); restore it or write it again")


def read_object(path: epath.PathLike) -> dict[str, Any]:
    """Reads a JSON file; raises `InputError` if it is missing or does not hold an object."""
    return _object(read_json(path), path)


def parse_object(data: bytes, path: epath.PathLike) -> dict[str, Any]:
    """As `parse_json`, for a file that must hold an object."""
    return _object(parse_json(data, path), path)


def _object(content: Any, path: epath.PathLike) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise InputError(
            f"{path} must be a JSON object, got something else; restore it or write it again"
        )
    return content


def read_fields(path: epath.PathLike, **kinds: Any) -> dict[str, Any]:
    """Reads a JSON object; `kinds` are the types of fields that it must have.

    Raises `InputError` as `read_object`, or if a field is missing or of another type.
    """
    content = read_object(path)
    for name, kind in kinds.items():
        if not isinstance(content.get(name), kind):
            raise InputError(f"{path} has no valid {name!r}; restore it or make it again")
    return content


def json_digest(obj: Any) -> str:
    """SHA-256 of an object's JSON, whatever its layout and order, as 64 hexadecimal digits."""
    text = json.dumps(obj, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class Nothing:
    """Stands in `differences` for a missing field."""

    def __repr__(self) -> str:
        return "nothing"


NOTHING = Nothing()
# Longer lists are too long for a message: only their first difference is shown.
_SHOWN = 10


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The fields in which two nested dicts of JSON differ, such as a config and the one on disk.

    Returns (old, new) by dotted path, sorted; `NOTHING` for a missing field. An empty dict equals
    a missing one; tuples and lists differ. For long lists it is the first element: `names[3]`.
    """
    changed: dict[str, tuple[Any, Any]] = {}
    for key in sorted(old.keys() | new.keys()):
        before, now = old.get(key, NOTHING), new.get(key, NOTHING)
        # A section that is missing on one side is compared field by field with an empty one.
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
    """Where lists too long for a message first differ; None for all other values."""
    if not all(isinstance(value, list | tuple) for value in (old, new)):
        return None
    if max(len(old), len(new)) <= _SHOWN:
        return None
    return next((i for i, (a, b) in enumerate(_pairs(old, new)) if a != b), None)


def write_sealed(path: epath.PathLike, obj: dict[str, Any]) -> None:
    """Writes a JSON object together with its own checksum, in the field `digest`."""
    assert "digest" not in obj, f"{path}: the field 'digest' is reserved"
    write_json(path, {**obj, "digest": json_digest(obj)})


def read_sealed(path: epath.PathLike) -> dict[str, Any]:
    """Reads what `write_sealed` wrote, without the checksum.

    Raises `InputError` if it is missing or not what was written.
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
        while block := file.read(1 << 20):  # 1 MiB at a time
            digest.update(block)
    return digest.hexdigest()
