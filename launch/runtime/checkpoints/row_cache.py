"""Rows of one shape on disk, by name: each is computed once, and read without what made it.

A cache is a folder. A JSON file says what the rows were made from; each `part-00000.safetensors`
holds some rows as one array [n, ...], and in its metadata their names and a checksum of each. A
part appears complete or not at all and is never changed: to go on is to add parts.
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
    """A file of rows, and where in it they begin."""

    path: epath.Path
    offset: int
    checksums: UInt32[np.ndarray, " rows"]


@dataclasses.dataclass(frozen=True)
class Parts:
    """The files of a cache: what reading takes that knows where its rows are, and no more.

    Attributes:
        files: in their order.
        shape: of one row.
        dtype: of the rows.
        mend: what to do for a damaged part, for messages.
    """

    files: list[Part]
    shape: tuple[int, ...]
    dtype: np.dtype
    mend: str

    @property
    def row_bytes(self) -> int:
        """Size of one row on disk."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(
        self, places: Int[np.ndarray, "n 2"], names: Sequence[str]
    ) -> Shaped[np.ndarray, "n ..."]:
        """Rows, by the numbers of their parts and in these; see `RowCache.places`.

        Raises:
            InputError: a row is damaged, or is another one than it is called.
        """
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
                    if _checksum(name, data) != part.checksums[row]:
                        raise InputError(_damaged(part.path, f"row {row}, {name!r}", self.mend))
                    found[i] = np.frombuffer(data, self.dtype).reshape(self.shape)
        return found


class RowCache:
    """A cache that exists, open for reading and for adding.

    A subclass says what its rows are called.

    Attributes:
        folder: where it is.
        made_from: what decides about the rows, with their `dtype`; caches with the same hold the
            same.
        shape: of one row.
        dtype: of the rows.
        contents: of the JSON file.
        parts: for reading alone.
    """

    # The JSON file; in it, and in the parts, what stands for `made_from`; in the parts, the names;
    # and the array.
    HEAD: ClassVar[str]
    MADE_FROM: ClassVar[str]
    NAMES: ClassVar[str]
    ARRAY: ClassVar[str]
    # For messages: what a folder lacks, what it holds of another maker, and what to do for a part.
    LACKING: ClassVar[str]
    OF_ANOTHER: ClassVar[str]
    MEND: ClassVar[str]

    def __init__(self, folder: epath.PathLike):
        """Reads the list of rows, and none of them.

        Raises:
            InputError: there is no cache, or a file of it is damaged, cut short or another's.
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
        # By name, see `places`.
        self._rows: dict[str, tuple[int, int]] = {}
        self.parts = Parts([], self.shape, self.dtype, self.MEND)
        self._next_part, self._turns = 0, 1
        for path in sorted(self.folder.glob("part-[0-9]*.safetensors")):
            self._index(path)
            self._next_part = max(self._next_part, 1 + int(path.stem.removeprefix("part-")))

    def _open(self) -> None:
        """Takes what else a subclass has from `contents`."""

    @classmethod
    def begin(
        cls, folder: epath.PathLike, made_from: Mapping[str, Any], shape: Sequence[int], **more: Any
    ) -> None:
        """Begins an empty cache in a folder that exists; `more` is for `contents`."""
        contents = {cls.MADE_FROM: dict(made_from), "shape": list(shape), **more}
        write_json(epath.Path(folder) / cls.HEAD, contents)

    @property
    def digest(self) -> str:
        """Of what decides about the rows."""
        return json_digest(self.made_from)

    @property
    def row_bytes(self) -> int:
        """Size of one row on disk."""
        return self.parts.row_bytes

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, name: str) -> bool:
        return name in self._rows

    def check_made_from(self, made_from: Mapping[str, Any]) -> None:
        """Compares what these rows were made from with something else.

        Raises:
            InputError: they differ; it says in what.
        """
        for field, (old, new) in differences(self.made_from, made_from).items():
            raise InputError(
                f"{self.folder} has {self.OF_ANOTHER} ({field} was {str(old)[:16]}, now it is "
                f"{str(new)[:16]}); name another folder, or remove that one"
            )

    def take_turns(self, number: int, count: int) -> None:
        """Lets so many processes add parts at a time; this one's is every `count`-th part."""
        self._next_part, self._turns = self._next_part + number, count

    def places(self, names: Iterable[str]) -> Int[np.ndarray, "n 2"]:
        """Where rows are that are all in the cache: the number of the part, and that in it."""
        return np.array([self._rows[name] for name in names], np.int32).reshape(-1, 2)

    def read(self, names: Sequence[str]) -> Shaped[np.ndarray, "n ..."]:
        """Rows that are all in the cache; only they are read.

        Raises:
            InputError: a row is damaged; its file and name are told.
        """
        return self.parts.read(self.places(names), names)

    def append(self, names: Sequence[str], rows: Float[np.ndarray, "n ..."]) -> None:
        """Adds rows as one more part; one process at a time can, or see `take_turns`."""
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
        """Reads the header of a part."""
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
        if not same_maker:
            maker = f"of another {self.MADE_FROM} than {self.folder}"
            raise InputError(f"{path} is {maker}; remove it there")
        if not whole or not fits or rows.end - rows.start != len(names) * self.row_bytes:
            raise InputError(_damaged(path, "its length", self.MEND))
        number = len(self.parts.files)
        self.parts.files.append(Part(path, data_start + rows.start, checksums))
        for row, name in enumerate(names):
            self._rows.setdefault(name, (number, row))


def _checksum(name: str, data: bytes) -> int:
    return crc32c.crc32c(data, crc32c.crc32c(name.encode()))


def _damaged(path: epath.Path, what: str, mend: str) -> str:
    """What is said of a part with damage."""
    return f"{path}: {what} is damaged; remove that file, then {mend}"
