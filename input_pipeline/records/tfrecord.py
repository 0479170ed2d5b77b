"""TFRecord shards with random access, both checksums checked on every read.

A record is: length (uint64, little endian), masked CRC-32C of these 8 bytes, data, masked CRC-32C
of the data. Grain's reader is sequential and checks neither.
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
_HEADER = _LENGTH_CRC.size
_FOOTER = _CRC.size
_REPAIR = "write this shard again"


def masked_crc(data: bytes) -> int:
    """CRC-32C, rotated and shifted as the TFRecord format asks (`core/lib/hash/crc32c.h`)."""
    crc = crc32c.crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


class Written(NamedTuple):
    """A shard that has been written.

    Attributes:
        num_bytes: its size.
        sha256: its digest.
        lengths: of the data of each record, in bytes.
    """

    num_bytes: int
    sha256: str
    lengths: list[int]


def write_tfrecord(path: epath.PathLike, records: Iterable[bytes]) -> Written:
    """Writes one shard, which appears under its name only when it is complete."""
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
    """One shard as a sequence of byte strings.

    Where the records begin is known when it is made; `file[i]` then reads record i alone. It holds
    no open file, so it can be pickled, used by several threads, and there can be thousands of them.

    Attributes:
        path: of the shard.
        starts: where each record begins, and where the last one ends.
    """

    def __init__(self, path: epath.PathLike, starts: Int64[np.ndarray, " ends"] | None = None):
        """Finds the records.

        Args:
            path: a local file, or an object in a store (`gs://`), of which every read is a request.
            starts: what this shard had before: then nothing is read.

        Raises:
            InputError: the file is missing, ends inside a record, or a length is damaged.
        """
        self.path = os.fspath(path)
        if starts is None:
            with self._open() as file:
                # A store answers a few large requests sooner than one a record.
                whole = not files.is_local(self.path)
                ends = [end for end, _ in self._records(Ahead(file) if whole else file, whole)]
                starts = np.array([0, *ends], np.int64)
        self.starts: Int64[np.ndarray, " ends"] = starts

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, i: int) -> bytes:
        """The data of record i.

        Raises:
            InputError: the record does not match its checksums, or the file became shorter.
        """
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
        """Of a record that has been read from start to end."""
        length = self._length(record[:_HEADER], i, start, start + len(record))
        if length != end - start - _HEADER - _FOOTER:
            raise self._error(i, start, "not where the index says")
        data = record[_HEADER:-_FOOTER]
        if masked_crc(data) != _CRC.unpack(record[-_FOOTER:])[0]:
            raise self._error(i, start, "damaged data (wrong checksum)")
        return data

    @classmethod
    def scan(cls, path: epath.PathLike) -> Iterator[tuple[int, bytes | InputError]]:
        """Goes through a shard from front to back and reads it once.

        Yields:
            Where a record ends, and its data or how they are damaged.

        Raises:
            InputError: the file is missing, ends inside a record, or a length is damaged: what
                comes after is lost.
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
        """Where each record ends, and the record if the whole file is read."""
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
        if masked_crc(header[: _LENGTH.size]) != crc:
            raise self._error(record, start, "damaged length (wrong checksum)")
        left = size - start - _HEADER - _FOOTER
        if length > left:
            fault = f"truncated ({length} bytes announced, {max(left, 0)} left)"
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
    """Where records begin, and the last one ends, whose data have these lengths."""
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(np.asarray(lengths, np.int64) + _HEADER + _FOOTER, out=starts[1:])
    return starts
