"""ArrayRecord shards with random access; the format checks a record's hash whenever it is read."""

import collections
import contextlib
import errno
import os
import resource
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from launch import files
from launch.errors import InputError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REPAIR = "prepare or fetch this shard again"


def write_array_record(path: Path, records: Iterable[bytes]) -> None:
    """Writes one shard, which appears under its name only when it is complete.

    Raises:
        OSError: there is no room for it.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    with files.atomic_path(path) as temporary:
        # Images are compressed already, or are not meant to be.
        writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
        try:
            for record in records:
                with _no_room_as_os_error(path):
                    writer.write(record)
        finally:
            with _no_room_as_os_error(path):
                writer.close()


@contextlib.contextmanager
def _no_room_as_os_error(path: Path) -> Iterator[None]:
    """The library has one kind of error for all, and the system's words in it."""
    try:
        yield
    except RuntimeError as error:
        for number in _NO_ROOM:
            if os.strerror(number) in str(error):
                raise OSError(number, os.strerror(number), str(path)) from None
        raise


class _Readers:
    """Open readers of the whole process, at most so many that its open files suffice."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: collections.OrderedDict[str, tuple[Any, Any]] = collections.OrderedDict()

    def get(self, path: str) -> Any:
        stat = os.stat(path)
        # A shard that was written again is another file under the same name.
        version = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        with self._lock:
            if path in self._open and self._open[path][0] == version:
                self._open.move_to_end(path)
                return self._open[path][1]
        reader = _new_reader(path)
        with self._lock:
            self._open[path] = (version, reader)
            # Not closed: another thread may be reading. It closes when the last one lets go of it.
            while len(self._open) > _capacity():
                self._open.popitem(last=False)
        return reader


def _capacity() -> int:
    return max(16, min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))


def _new_reader(path: str) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    options = dict(options="readahead_buffer_size:0", file_reader_buffer_size=32768)
    reader = ArrayRecordReader(path, **options)
    # Of a file that was cut short it says no more than this, and that it has 0 records.
    if not reader.ok():
        raise ValueError("cut short")
    return reader


_READERS = _Readers()


class ArrayRecordFile:
    """One shard as a sequence of byte strings.

    It holds no open file itself, so it can be pickled and used by several threads.

    Attributes:
        path: of the shard.
    """

    def __init__(self, path: str):
        """Opens a shard.

        Raises:
            InputError: the file is in a store, missing, cut short or no ArrayRecord.
        """
        self.path = path
        if not files.is_local(path):
            raise InputError(
                f"{path}: array_record needs a mounted folder; mount or copy it, or "
                "prepare the set as tfrecord"
            )
        try:
            self._length = _READERS.get(path).num_records()
        except FileNotFoundError:
            raise InputError(f"{path}: no such shard; {_REPAIR}") from None
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"{path} is not a complete ArrayRecord ({_line(error)}); {_REPAIR}"
            ) from None

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i: int) -> bytes:
        """The data of record i.

        Raises:
            InputError: the record is damaged, or the file is no longer there.
        """
        if not 0 <= i < self._length:
            raise IndexError(f"record {i} of {self._length}")
        try:
            return _READERS.get(self.path).read([i])[0]
        except FileNotFoundError:
            raise InputError(f"{self.path}: no such shard; {_REPAIR}") from None
        except (RuntimeError, ValueError, IndexError) as error:
            raise InputError(f"{self.where(i)}: damaged ({_line(error)}); {_REPAIR}") from None

    def where(self, i: int) -> str:
        """Shard and number of record i, for messages."""
        return f"{self.path}: record {i}"

    @classmethod
    def scan(cls, path: str) -> Iterator[tuple[None, bytes | InputError]]:
        """Goes through a shard from front to back; see `TFRecordFile.scan`."""
        shard = cls(path)
        for i in range(len(shard)):
            try:
                yield None, shard[i]
            except InputError as error:
                yield None, error


def _line(error: Exception) -> str:
    """The cause without the source lines of the library, which follow it."""
    return str(error).split("; ")[0].replace("\n", " ")
