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

from input_pipeline import files
from input_pipeline.files import InputError

_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<I")
_HEADER = _LENGTH.size + _CRC.size
_FOOTER = _CRC.size
_REPAIR = "write this shard again"


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
    """

    def __init__(self, path: epath.PathLike):
        """Indexes the shard.

        Args:
            path: a local file (or one of a mounted bucket).

        Raises:
            InputError: the file is missing or remote, ends inside a record, or a length is damaged.
        """
        if not files.is_local(path):
            raise InputError(f"{path}: shards are read from mounted folders; mount or copy it")
        self.path = os.fspath(path)
        # Columns: offset of the data, its length, its masked checksum.
        self.index: Int64[np.ndarray, "n 3"] = self._scan()

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> bytes:
        """The data of record i.

        Raises:
            InputError: the record does not match its checksum, or the file became shorter.
        """
        offset, length, crc = self.index[i].tolist()
        with self._open() as fd:
            data = os.pread(fd, length, offset)
        if len(data) != length:
            raise self._error(i, offset - _HEADER, "truncated")
        if masked_crc(data) != crc:
            raise self._error(i, offset - _HEADER, "damaged data (wrong checksum)")
        return data

    def _scan(self) -> Int64[np.ndarray, "n 3"]:
        rows: list[tuple[int, int, int]] = []
        start = 0
        with self._open() as fd:
            size = os.fstat(fd).st_size
            header = os.pread(fd, _HEADER, 0)
            while start < size:
                length = self._length(header, len(rows), start, size)
                offset = start + _HEADER
                # The end of this record and the header of the next in one read.
                tail = os.pread(fd, _FOOTER + _HEADER, offset + length)
                rows.append((offset, length, _CRC.unpack(tail[:_FOOTER])[0]))
                start, header = offset + length + _FOOTER, tail[_FOOTER:]
        return np.array(rows, np.int64).reshape(-1, 3)

    def _length(self, header: bytes, record: int, start: int, size: int) -> int:
        if len(header) < _HEADER:
            raise self._error(record, start, "truncated")
        if masked_crc(header[: _LENGTH.size]) != _CRC.unpack(header[_LENGTH.size :])[0]:
            raise self._error(record, start, "damaged length (wrong checksum)")
        length = _LENGTH.unpack(header[: _LENGTH.size])[0]
        left = size - start - _HEADER - _FOOTER
        if length > left:
            fault = f"truncated ({length} bytes announced, {max(left, 0)} left)"
            raise self._error(record, start, fault)
        return length

    def _error(self, record: int, start: int, fault: str) -> InputError:
        return InputError(f"{self.path}: record {record} at byte {start}: {fault}; {_REPAIR}")

    @contextlib.contextmanager
    def _open(self) -> Iterator[int]:
        try:
            fd = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            raise InputError(f"{self.path}: no such shard; {_REPAIR}") from None
        try:
            yield fd
        finally:
            os.close(fd)
