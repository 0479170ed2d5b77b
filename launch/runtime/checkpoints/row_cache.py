"""Rows of one shape on disk, by name: each is computed once, then read without what made it.

A cache is a folder. A JSON file says what the rows were made from. Each `part-00000.safetensors`
holds rows as one array [n, ...], with their names and checksums in its metadata. A part appears
complete or not at all and never changes; the cache grows by adding parts.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import crc32c
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from etils import epath
from jaxtyping import Float, Int, Shaped, UInt32

from launch.errors import InputError
from launch.files import differences, json_digest, read_json, write_atomic, write_json
from launch.runtime.checkpoints.safetensors_header import (
    LENGTH_BYTES,
    parse_header,
    read_header,
)


class Part(NamedTuple):
    """A file of rows; `offset` is the byte where they begin."""

    path: epath.Path
    offset: int
    checksums: UInt32[np.ndarray, " rows"]


@dataclasses.dataclass(frozen=True)
class Parts:
    """The files of a cache, for a reader that knows where its rows are."""

    files: list[Part]
    shape: tuple[int, ...]  # of one row
    dtype: np.dtype
    mend: str  # what to do about a damaged part, for messages

    @property
    def row_bytes(self) -> int:
        """Bytes of one row on disk."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(
        self, places: Int[np.ndarray, "n 2"], names: Sequence[str]
    ) -> Shaped[np.ndarray, "n ..."]:
        """Reads rows by (part, row in the part), see `RowCache.places`; [n, ...].

        Raises `InputError` if a row is damaged or has another name.
        """
        # In the order of the files, each opened once, from its beginning to its end.
        found = np.empty((len(names), *self.shape), self.dtype)
        wanted = sorted(
            (*place, i, name)
            for i, (place, name) in enumerate(zip(places.tolist(), names, strict=True))
        )
        for number, of_part in itertools.groupby(wanted, lambda place: place[0]):
            part = self.files[number]
            with part.path.open("rb") as file:
                for _, row, i, name in of_part:
                    file.seek(part.offset + row * self.row_bytes)
                    data = file.read(self.row_bytes)
                    # The name is part of the checksum: a row of another name fails too.
                    if _checksum(name, data) != part.checksums[row]:
                        raise InputError(_damaged(part.path, f"row {row}, {name!r}", self.mend))
                    found[i] = np.frombuffer(data, self.dtype).reshape(self.shape)
        return found


class RowCache:
    """An existing cache, open for reading and adding. Subclasses name its parts and messages.

    `made_from` is what determines the rows, their `dtype` included: equal caches hold equal rows.
    `shape` is of one row, `contents` the JSON file, `parts` all that reading needs.
    """

    # The name of the JSON file; the key of `made_from` in it and in the parts' metadata; the key of
    # the names in that metadata; the name of the array.
    HEAD: ClassVar[str]
    MADE_FROM: ClassVar[str]
    NAMES: ClassVar[str]
    ARRAY: ClassVar[str]
    # For messages: what a folder without a cache lacks, what one made from something else holds,
    # and what to do about a damaged part.
    LACKING: ClassVar[str]
    OF_ANOTHER: ClassVar[str]
    MEND: ClassVar[str]

    def __init__(self, folder: epath.PathLike):
        """Reads the headers of all parts, but no rows.

        Raises `InputError` if there is no cache, or a file is damaged, cut short or of another one.
        """
        self.folder = epath.Path(folder)
        path = self.folder / self.HEAD
        if not path.exists():
            raise InputError(f"{folder} {self.LACKING}")
        try:
            self.contents = read_json(path)
            self.made_from: dict[str, Any] = dict(self.contents[self.MADE_FROM])
            self.shape = tuple(int(side) for side in self.contents["shape"])
            self.dtype = jnp.dtype(self.made_from["dtype"])
            self._open()
        except (ArithmeticError, KeyError, TypeError, ValueError):
            raise InputError(f"{path} is damaged; remove {folder} and make it again") from None
        # (part, row in the part) by name, see `places`.
        self._rows: dict[str, tuple[int, int]] = {}
        self.parts = Parts([], self.shape, self.dtype, self.MEND)
        self._next_part, self._turns = 0, 1
        for path in sorted(self.folder.glob("part-[0-9]*.safetensors")):
            self._index(path)
            self._next_part = max(self._next_part, 1 + int(path.stem.removeprefix("part-")))

    def _open(self) -> None:
        """A hook for what else a subclass reads from `contents`."""

    @classmethod
    def begin(
        cls, folder: epath.PathLike, made_from: Mapping[str, Any], shape: Sequence[int], **more: Any
    ) -> None:
        """Creates an empty cache in an existing folder; `more` is added to `contents`."""
        contents = {cls.MADE_FROM: dict(made_from), "shape": list(shape), **more}
        write_json(epath.Path(folder) / cls.HEAD, contents)

    @property
    def digest(self) -> str:
        """Checksum of what determines the rows."""
        return json_digest(self.made_from)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row on disk."""
        return self.parts.row_bytes

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, name: str) -> bool:
        return name in self._rows

    def check_made_from(self, made_from: Mapping[str, Any]) -> None:
        """Raises `InputError`, naming the field, if the rows were made from something else."""
        for field, (old, new) in differences(self.made_from, made_from).items():
            raise InputError(
                f"{self.folder} has {self.OF_ANOTHER} ({field} was {str(old)[:16]}, now it is "
                f"{str(new)[:16]}); choose another folder, or remove this one"
            )

    def take_turns(self, number: int, count: int) -> None:
        """Lets `count` processes add parts at once: process `number` gets every `count`-th part."""
        self._next_part, self._turns = self._next_part + number, count

    def places(self, names: Iterable[str]) -> Int[np.ndarray, "n 2"]:
        """Where rows are, which must all be in the cache: (part, row in the part)."""
        return np.array([self._rows[name] for name in names], np.int32).reshape(-1, 2)

    def read(self, names: Sequence[str]) -> Shaped[np.ndarray, "n ..."]:
        """Reads rows that are all in the cache; raises `InputError` if one is damaged."""
        return self.parts.read(self.places(names), names)

    def append(self, names: Sequence[str], rows: Float[np.ndarray, "n ..."]) -> None:
        """Adds rows as a new part. For one process at a time, but see `take_turns`."""
        rows = np.ascontiguousarray(rows, self.dtype)
        if rows.shape != (len(names), *self.shape):
            raise ValueError(f"{len(names)} {self.NAMES}, {rows.shape}, each is {self.shape}")
        checksums = [_checksum(name, row.tobytes()) for name, row in zip(names, rows, strict=True)]
        metadata = {
            self.MADE_FROM: self.digest,
            self.NAMES: json.dumps(list(names)),
            "crc32c": json.dumps(checksums),
        }
        path = self.folder / f"part-{self._next_part:05d}.safetensors"
        write_atomic(path, safetensors.numpy.save({self.ARRAY: rows}, metadata))
        self._next_part += self._turns
        self._index(path)

    def _index(self, path: epath.Path) -> None:
        # 1. Read what the header says.
        try:
            header = read_header(path)
            entries, metadata = parse_header(header)
            rows = entries[self.ARRAY]
            names, checksums = json.loads(metadata[self.NAMES]), json.loads(metadata["crc32c"])
            data_start = LENGTH_BYTES + len(header)
            whole = path.stat().length == data_start + rows.end
            fits = rows.shape == (len(names), *self.shape) and len(checksums) == len(names)
            same_maker = metadata[self.MADE_FROM] == self.digest
            checksums = np.array(checksums, np.uint32)
        except (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError):
            raise InputError(_damaged(path, "its head", self.MEND)) from None
        # 2. Compare it with the cache and the file's length.
        if not same_maker:
            maker = f"of another {self.MADE_FROM} than {self.folder}"
            raise InputError(f"{path} is {maker}; remove it from there")
        if not whole or not fits or rows.end - rows.start != len(names) * self.row_bytes:
            raise InputError(_damaged(path, "its length", self.MEND))
        # 3. Enter the rows; the first part wins if two processes added the same name.
        number = len(self.parts.files)
        self.parts.files.append(Part(path, data_start + rows.start, checksums))
        for row, name in enumerate(names):
            self._rows.setdefault(name, (number, row))


def _checksum(name: str, data: bytes) -> int:
    return crc32c.crc32c(data, crc32c.crc32c(name.encode()))


def _damaged(path: epath.Path, what: str, mend: str) -> str:
    return f"{path}: {what} is damaged; remove that file, then {mend}"
