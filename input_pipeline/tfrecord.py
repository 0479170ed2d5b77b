"""TFRecord shards with random access, both checksums checked on every read.

A record is: length (uint64, little endian), masked CRC-32C of these 8 bytes, data, masked CRC-32C
of the data. Grain's reader is sequential and checks neither.
"""

import contextlib
import os
import struct
from collections.abc import Iterable, Iterator

import crc32c
import numpy as np
from etils import epath
from jaxtyping import Int64

from input_pipeline import byte_ranges, files
from input_pipeline.byte_ranges import Ahead, ByteRanges
from input_pipeline.files import InputError

_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<I")
_LENGTH_CRC = struct.Struct("<QI")
_HEADER = _LENGTH_CRC.size
_FOOTER = _CRC.size
_REPAIR = "write this shard again"

Row = tuple[int, int, int]


def masked_crc(data: bytes) -> int:
    """CRC-32C, rotated and shifted as the TFRecord format asks (`core/lib/hash/crc32c.h`)."""
    crc = crc32c.crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def write_tfrecord(path: epath.PathLike, records: Iterable[bytes]) -> int:
    """Writes one shard, which appears under its name only when it is complete.

    Returns:
        The size of the file in bytes.
    """
    with files.atomic_file(path) as file:
        for data in records:
            length = _LENGTH.pack(len(data))
            file.write(length + _CRC.pack(masked_crc(length)))
            file.write(data + _CRC.pack(masked_crc(data)))
        return file.tell()


class TFRecordFile:
    """One shard as a sequence of byte strings.

    The headers are read once, when it is made; `file[i]` then reads record i alone. It holds no
    open file, so it can be pickled, used by several threads, and there can be thousands of them.

    Attributes:
        path: of the shard.
        index: of each record the offset of its data, their length and their masked checksum.
    """

    def __init__(self, path: epath.PathLike, index: Int64[np.ndarray, "n 3"] | None = None):
        """Indexes the shard.

        Args:
            path: a local file, or an object in a store (`gs://`), of which every read is a request.
            index: the one that this shard had before: then nothing is read.

        Raises:
            InputError: the file is missing, ends inside a record, or a length is damaged.
        """
        self.path = os.fspath(path)
        if index is None:
            with self._open() as file:
                # A store answers a few large requests sooner than one a record.
                whole = not files.is_local(self.path)
                rows = self._rows(Ahead(file) if whole else file, whole)
                index = np.array([row for row, _ in rows], np.int64)
        self.index: Int64[np.ndarray, "n 3"] = index.reshape(-1, 3)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> bytes:
        """The data of record i.

        Raises:
            InputError: the record does not match its checksum, or the file became shorter.
        """
        offset, length, crc = self.index[i].tolist()
        with self._open() as file:
            data = file.read(offset, length)
        self._check(data, i, offset, length, crc)
        return data

    def where(self, i: int) -> str:
        """Shard, number and place of record i, for messages."""
        return _where(self.path, i, int(self.index[i, 0]) - _HEADER)

    def _check(self, data: bytes, i: int, offset: int, length: int, crc: int) -> None:
        if len(data) != length:
            raise self._error(i, offset - _HEADER, "truncated")
        if masked_crc(data) != crc:
            raise self._error(i, offset - _HEADER, "damaged data (wrong checksum)")

    @classmethod
    def scan(cls, path: epath.PathLike) -> Iterator[tuple[Row, bytes | InputError]]:
        """Goes through a shard from front to back and reads it once.

        Yields:
            The index's row of a record, and its data or how they are damaged.

        Raises:
            InputError: the file is missing, ends inside a record, or a length is damaged: what
                comes after is lost.
        """
        shard = cls(path, np.empty((0, 3), np.int64))
        with shard._open() as file:
            for i, (row, data) in enumerate(shard._rows(Ahead(file), whole=True)):
                try:
                    shard._check(data, i, *row)
                except InputError as error:
                    yield row, error
                else:
                    yield row, data

    def _rows(self, file: ByteRanges, whole: bool) -> Iterator[tuple[Row, bytes]]:
        """Rows of the index, and the data if the whole file is read."""
        size, start, record = file.size(), 0, 0
        header = file.read(0, _HEADER)
        while start < size:
            length = self._length(header, record, start, size)
            offset, read = start + _HEADER, length if whole else 0
            # The end of this record and the header of the next in one read.
            block = file.read(offset + length - read, read + _FOOTER + _HEADER)
            yield (offset, length, _CRC.unpack_from(block, read)[0]), block[:read]
            start, header = offset + length + _FOOTER, block[read + _FOOTER :]
            record += 1

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
