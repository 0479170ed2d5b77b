"""ArrayRecord shards with random access; the format verifies a record's hash on every read."""

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

# Disk full, quota reached, file too large.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REPAIR = "prepare or download this shard again"


def write_array_record(path: Path, records: Iterable[bytes]) -> None:
    """Writes one shard, which appears under its name when complete; OSError if the disk is full."""
    from array_record.python.array_record_module import ArrayRecordWriter

    with files.atomic_path(path) as temporary:
        # One record per group, for random access. Images are compressed already, or raw on purpose.
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
    """The library raises RuntimeError for everything, with the system's message in its text."""
    try:
        yield
    except RuntimeError as error:
        # The message is all that tells a full disk from other errors.
        for number in _NO_ROOM:
            if os.strerror(number) in str(error):
                raise OSError(number, os.strerror(number), str(path)) from None
        raise


class _Readers:
    """The open readers of this process, limited by its number of open files."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: collections.OrderedDict[str, tuple[Any, Any]] = collections.OrderedDict()

    def get(self, path: str) -> Any:
        # A rewritten shard is another file under the same name.
        stat = os.stat(path)
        version = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        with self._lock:
            if path in self._open and self._open[path][0] == version:
                self._open.move_to_end(path)
                return self._open[path][1]
        reader = _new_reader(path)
        with self._lock:
            self._open[path] = (version, reader)
            # Dropped but not closed: another thread may be reading. It closes with the last
            # reference.
            while len(self._open) > _capacity():
                self._open.popitem(last=False)
        return reader


def _capacity() -> int:
    # Half of the limit leaves files for everything else.
    return max(16, min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))


def _new_reader(path: str) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    # No read-ahead, which is for sequential readers; 32 kB, since records are read one at a time.
    options = dict(options="readahead_buffer_size:0", file_reader_buffer_size=32768)
    reader = ArrayRecordReader(path, **options)
    # This is all it says of a truncated file, which otherwise seems to have 0 records.
    if not reader.ok():
        raise ValueError("cut short")
    return reader


_READERS = _Readers()


class ArrayRecordFile:
    """One shard as a sequence of byte strings; it can be pickled and shared by threads."""

    def __init__(self, path: str):
        """Opens a shard; InputError if it is in a store, missing, truncated or no ArrayRecord."""
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
        """The data of record i; InputError if they are damaged, or the file is gone."""
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
        """Yields (None, data or error) for each record; see `TFRecordFile.scan`."""
        shard = cls(path)
        for i in range(len(shard)):
            try:
                yield None, shard[i]
            except InputError as error:
                yield None, error


def _line(error: Exception) -> str:
    # The cause comes first; file and line of the library's source follow after "; ".
    return str(error).split("; ")[0].replace("\n", " ")
