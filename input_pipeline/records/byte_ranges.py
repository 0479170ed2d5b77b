"""Byte ranges of mounted files and of objects in a store such as `gs://`."""

import contextlib
import os
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from launch import files
from launch.errors import InputError

_WINDOW = 8 << 20  # bytes per request to a store, so that its latency matters little


@runtime_checkable
class ByteRanges(Protocol):
    """A file open for reading; threads may share it."""

    def size(self) -> int:
        """In bytes."""
        ...

    def changed(self) -> str:
        """A mark that differs after the file is rewritten: its time, or a store's tag."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """The bytes from `offset` on, fewer at the end of the file."""
        ...


@contextlib.contextmanager
def opened(path: str) -> Iterator[ByteRanges]:
    """Opens a file for the block; FileNotFoundError if there is none. Objects are not held open."""
    if not files.is_local(path):
        yield _Object(path)
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        yield _Mounted(fd)
    finally:
        os.close(fd)


class _Mounted:
    def __init__(self, fd: int):
        self._fd = fd

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def changed(self) -> str:
        return str(os.fstat(self._fd).st_mtime_ns)

    def read(self, offset: int, length: int) -> bytes:
        # pread takes its own offset, so threads can share the file.
        return os.pread(self._fd, length, offset)


class _Object:
    def __init__(self, path: str):
        # Imported late: local files do not need it.
        import fsspec

        try:
            self._store, self._path = fsspec.core.url_to_fs(path)
        except ImportError as error:
            raise InputError(f"{path}: {error}; install it, or mount or copy the data") from None
        except ValueError as error:
            raise InputError(f"{path}: {error}; mount or copy the data") from None

    def size(self) -> int:
        return self._store.size(self._path)

    def changed(self) -> str:
        info = self._store.info(self._path)
        # Each store has its own name for it.
        fields = ("mtime", "updated", "LastModified", "ETag", "etag", "created")
        return str(next((info[key] for key in fields if info.get(key)), ""))

    def read(self, offset: int, length: int) -> bytes:
        return self._store.cat_file(self._path, start=offset, end=offset + length)


class Ahead:
    """Reads large windows, for going through a file from front to back."""

    def __init__(self, file: ByteRanges):
        self._file, self._size = file, file.size()
        self._start, self._window = 0, b""

    def size(self) -> int:
        """See `ByteRanges`."""
        return self._size

    def changed(self) -> str:
        """See `ByteRanges`."""
        return self._file.changed()

    def read(self, offset: int, length: int) -> bytes:
        """See `ByteRanges`."""
        # A reader may ask for more than is left.
        length = max(0, min(length, self._size - offset))
        at = offset - self._start
        if at < 0 or at + length > len(self._window):
            # Outside the window: fetch a new one that starts here.
            whole = min(max(length, _WINDOW), self._size - offset)
            self._start, self._window, at = offset, self._file.read(offset, whole), 0
        return self._window[at : at + length]
