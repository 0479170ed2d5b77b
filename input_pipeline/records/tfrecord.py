"""TFRecord shards with random access; both checksums are verified on every read.

A record is: length (uint64, little endian), masked CRC-32C of these 8 bytes, data, masked CRC-32C
of the data. Grain's reader is sequential and verifies neither.
"""

import contextlib
import hashlib
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import crc32c
import numpy as np
from etils import epath
from jaxtyping import Int64

from input_pipeline.records import byte_ranges
from input_pipeline.records.byte_ranges import Ahead, ByteRanges
from launch import files
from launch.errors import InputError

_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<I")
_LENGTH_CRC = struct.Struct("<QI")
_HEADER = _LENGTH_CRC.size  # 12 bytes before the data
_FOOTER = _CRC.size  # 4 bytes after them
_REPAIR = "write this shard again"


def masked_crc(data: bytes) -> int:
    """CRC-32C, masked as the TFRecord format requires (TensorFlow, `core/lib/hash/crc32c.h`)."""
    crc = crc32c.crc32c(data)
    # Rotated right by 15 bits, plus a constant.
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


class Written(NamedTuple):
    """A shard that has been written."""

    num_bytes: int  # of the file
    sha256: str  # of the file
    lengths: list[int]  # bytes of each record's data


def write_tfrecord(path: epath.PathLike, records: Iterable[bytes]) -> Written:
    """Writes one shard, which appears under its name only when complete."""
    digest, lengths = hashlib.sha256(), []
    with files.atomic_file(path) as file:
        for data in records:
            length = _LENGTH.pack(len(data))
            record = b"".join(
                (length, _CRC.pack(masked_crc(length)), data, _CRC.pack(masked_crc(data)))
            )
            file.write(record)
            digest.update(record)
            lengths.append(len(data))
        return Written(file.tell(), digest.hexdigest(), lengths)


class TFRecordFile:
    """One shard as a sequence of byte strings, of which `file[i]` reads record i alone."""

    def __init__(self, path: epath.PathLike, starts: Int64[np.ndarray, " ends"] | None = None):
        """Finds the records, in a file or an object of a store; with `starts` nothing is read."""
        self.path = os.fspath(path)
        if starts is None:
            with self._open() as file:
                # In a mounted file only the lengths are read. In a store every read is a request,
                # and a few large ones are faster than one per record.
                whole = not files.is_local(self.path)
                ends = [end for end, _ in self._records(Ahead(file) if whole else file, whole)]
                starts = np.array([0, *ends], np.int64)
        # [n + 1]: where each record starts, and where the last one ends.
        self.starts: Int64[np.ndarray, " ends"] = starts

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, i: int) -> bytes:
        """The data of record i; InputError if a checksum is wrong, or the file became shorter."""
        i = range(len(self))[i]
        start, end = self.starts[i : i + 2].tolist()
        with self._open() as file:
            return self._data(file.read(start, end - start), i, start, end)

    @property
    def lengths(self) -> Int64[np.ndarray, " n"]:
        """Bytes of each record's data."""
        return np.diff(self.starts) - _HEADER - _FOOTER

    def where(self, i: int) -> str:
        """Shard, number and offset of record i, for messages."""
        return _where(self.path, i, int(self.starts[i]))

    def _data(self, record: bytes, i: int, start: int, end: int) -> bytes:
        length = self._length(record[:_HEADER], i, start, start + len(record))
        # `starts` may come from an index of an earlier version of the file.
        if length != end - start - _HEADER - _FOOTER:
            raise self._error(i, start, "not where the index says")
        data = record[_HEADER:-_FOOTER]
        if masked_crc(data) != _CRC.unpack(record[-_FOOTER:])[0]:
            raise self._error(i, start, "damaged data (wrong checksum)")
        return data

    @classmethod
    def scan(cls, path: epath.PathLike) -> Iterator[tuple[int, bytes | InputError]]:
        """Reads a shard once, front to back; yields (end, data or error) of each record.

        Raises InputError at a damaged length or a truncated record: all that follows is lost.
        """
        shard, start = cls(path, np.zeros(1, np.int64)), 0
        with shard._open() as file:
            for i, (end, record) in enumerate(shard._records(Ahead(file), whole=True)):
                try:
                    data = shard._data(record, i, start, end)
                except InputError as error:
                    yield end, error
                else:
                    yield end, data
                start = end

    def _records(self, file: ByteRanges, whole: bool) -> Iterator[tuple[int, bytes]]:
        """Yields (end, record) for each; the record is empty unless `whole`."""
        size, start, record = file.size(), 0, 0
        while start < size:
            header = file.read(start, _HEADER)
            end = start + self._length(header, record, start, size) + _HEADER + _FOOTER
            yield end, file.read(start, end - start) if whole else b""
            start, record = end, record + 1

    def _length(self, header: bytes, record: int, start: int, size: int) -> int:
        if len(header) < _HEADER:
            raise self._error(record, start, "truncated")
        length, crc = _LENGTH_CRC.unpack(header)
        # Checked before it is used: a wrong length would lead anywhere.
        if masked_crc(header[: _LENGTH.size]) != crc:
            raise self._error(record, start, "damaged length (wrong checksum)")
        left = size - start - _HEADER - _FOOTER
        if length > left:
            fault = f"truncated ({length} bytes expected, {max(left, 0)} left)"
            raise self._error(record, start, fault)
        return length

    def _error(self, record: int, start: int, fault: str) -> InputError:
        return InputError(f"{_where(self.path, record, start)}: {fault}; {_REPAIR}")

    @contextlib.contextmanager
    def _open(self) -> Iterator[ByteRanges]:
        try:
            with byte_ranges.opened(self.path) as file:
                yield file
        except FileNotFoundError:
            raise InputError(f"{self.path}: no such shard; {_REPAIR}") from None


def _where(path: str, record: int, start: int) -> str:
    return f"{path}: record {record} at byte {start}"


def starts_of(lengths: Sequence[int]) -> Int64[np.ndarray, " ends"]:
    """[n + 1]: where records with data of these lengths start, and where the last one ends."""
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(np.asarray(lengths, np.int64) + _HEADER + _FOOTER, out=starts[1:])
    return starts
