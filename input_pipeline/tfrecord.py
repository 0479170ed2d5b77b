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
    """

    def __init__(self, path: epath.PathLike, lengths: Sequence[int] | None = None):
        """Finds the records.

        Args:
            path: a local file (or one of a mounted bucket).
            lengths: of the data of each record, where they are known; None reads all headers.

        Raises:
            InputError: the file is missing or remote, ends inside a record, or a length is damaged.
        """
        if not files.is_local(path):
            raise InputError(f"{path}: shards are read from mounted folders; mount or copy it")
        self.path = os.fspath(path)
        if lengths is None:
            lengths = self._scan()
        # Where each record begins, and where the last one ends.
        self.starts: Int64[np.ndarray, " n+1"] = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(np.asarray(lengths, np.int64) + _HEADER + _FOOTER, out=self.starts[1:])

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, i: int) -> bytes:
        """The data of record i.

        Raises:
            InputError: the record does not match its checksums, or the file became shorter.
        """
        i = range(len(self))[i]
        start, end = self.starts[i : i + 2].tolist()
        with self._open() as fd:
            record = os.pread(fd, end - start, start)
        length = self._length(record[:_HEADER], i, start, start + len(record))
        data, crc = record[_HEADER:-_FOOTER], record[-_FOOTER:]
        if len(data) != length:
            raise self._error(i, start, "not where the index says")
        if masked_crc(data) != _CRC.unpack(crc)[0]:
            raise self._error(i, start, "damaged data (wrong checksum)")
        return data

    def _scan(self) -> list[int]:
        lengths: list[int] = []
        start = 0
        with self._open() as fd:
            size = os.fstat(fd).st_size
            while start < size:
                header = os.pread(fd, _HEADER, start)
                lengths.append(self._length(header, len(lengths), start, size))
                start += _HEADER + lengths[-1] + _FOOTER
        return lengths

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
