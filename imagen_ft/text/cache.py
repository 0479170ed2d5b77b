"""Text states on disk, by prompt: every one is computed once, and read without the encoder.

A cache is a folder. `encoder.json` says what the states are of; each `part-00000.safetensors` holds
some prompts' states as one array [n, length, d], and in its metadata the prompts and a checksum of
each. A part appears complete or not at all and is never changed: to go on is to add parts.
"""

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import crc32c
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from etils import epath
from jaxtyping import Float

from launch.errors import InputError
from launch.files import differences, read_json, write_atomic, write_json
from launch.runtime.checkpoints.safetensors_header import (
    LENGTH_BYTES,
    parse_header,
    read_header,
)

DTYPES = ("bfloat16", "float16", "float32")
_STATES = "states"


class _Row(NamedTuple):
    """Where one prompt's states are."""

    path: epath.Path
    number: int
    offset: int
    checksum: int


class TextCache:
    """A cache that exists, open for reading and for adding.

    Attributes:
        folder: where it is.
        encoder: what decides about the states; caches with the same hold the same.
        shape: [length, d] of one prompt's states.
        dtype: of the states.
        flags: of the command, that stand for the encoder; for messages.
    """

    def __init__(self, folder: epath.PathLike):
        """Reads the list of prompts, and no states.

        Raises:
            InputError: there is no cache, or a file of it is damaged, cut short or another's.
        """
        self.folder = epath.Path(folder)
        path = self.folder / "encoder.json"
        if not path.exists():
            raise InputError(f"{folder} holds no text cache: make it by python -m imagen_ft.text")
        try:
            contents = read_json(path)
            self.encoder: dict[str, Any] = dict(contents["encoder"])
            length, width = contents["shape"]
            self.shape = int(length), int(width)
            self.dtype = jnp.dtype(self.encoder["dtype"])
            self.flags = [str(flag) for flag in contents["flags"]]
        except (ArithmeticError, KeyError, TypeError, ValueError):
            raise InputError(f"{path}: damaged; remove {folder} and make it again") from None
        self._rows: dict[str, _Row] = {}
        self._next_part = 0
        for path in sorted(self.folder.glob("part-[0-9]*.safetensors")):
            self._index(path)
            self._next_part = max(self._next_part, 1 + int(path.stem.removeprefix("part-")))

    @classmethod
    def create(
        cls,
        folder: epath.PathLike,
        encoder: Mapping[str, Any],
        shape: tuple[int, int],
        flags: Sequence[str],
    ) -> "TextCache":
        """Begins an empty cache in a folder that exists; see the class for the arguments."""
        contents = {"encoder": dict(encoder), "shape": list(shape), "flags": list(flags)}
        write_json(epath.Path(folder) / "encoder.json", contents)
        return cls(folder)

    @property
    def digest(self) -> str:
        """Of what decides about the states."""
        return digest_of(self.encoder)

    @property
    def row_bytes(self) -> int:
        """Size of one prompt's states on disk."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, prompt: str) -> bool:
        return prompt in self._rows

    def check_encoder(self, encoder: Mapping[str, Any]) -> None:
        """Compares the encoder of these states with another.

        Raises:
            InputError: they differ; it says in what.
        """
        for field, (old, new) in differences(self.encoder, encoder).items():
            raise InputError(
                f"{self.folder} holds the states of another encoder ({field} was "
                f"{str(old)[:16]}, now it is {str(new)[:16]}): name another folder, or remove "
                "that one"
            )

    def read(self, prompts: Sequence[str]) -> Float[np.ndarray, "n length d"]:
        """States of prompts that are all in the cache, as float32; only theirs are read.

        Raises:
            InputError: a row is damaged; its file and prompt are named.
        """
        states = np.empty((len(prompts), *self.shape), np.float32)
        rows = sorted((self._rows[prompt], i, prompt) for i, prompt in enumerate(prompts))
        for path, rows_of_file in itertools.groupby(rows, lambda row: row[0].path):
            with path.open("rb") as file:
                for row, i, prompt in rows_of_file:
                    file.seek(row.offset)
                    data = file.read(self.row_bytes)
                    if _checksum(prompt, data) != row.checksum:
                        raise InputError(_damaged(path, f"row {row.number}, {prompt!r}"))
                    states[i] = np.frombuffer(data, self.dtype).reshape(self.shape)
        return states

    def append(self, prompts: Sequence[str], states: Float[np.ndarray, "n length d"]) -> None:
        """Adds prompts as one more part; only one process at a time can."""
        states = np.ascontiguousarray(states, self.dtype)
        if states.shape != (len(prompts), *self.shape):
            raise ValueError(f"{len(prompts)} prompts, states {states.shape}, rows {self.shape}")
        checksums = [
            _checksum(prompt, row.tobytes()) for prompt, row in zip(prompts, states, strict=True)
        ]
        metadata = {
            "encoder": self.digest,
            "prompts": json.dumps(list(prompts)),
            "crc32c": json.dumps(checksums),
        }
        path = self.folder / f"part-{self._next_part:05d}.safetensors"
        write_atomic(path, safetensors.numpy.save({_STATES: states}, metadata))
        self._next_part += 1
        self._index(path)

    def _index(self, path: epath.Path) -> None:
        """Reads the header of a part."""
        try:
            header = read_header(path)
            entries, metadata = parse_header(header)
            states = entries[_STATES]
            prompts, checksums = json.loads(metadata["prompts"]), json.loads(metadata["crc32c"])
            data_start = LENGTH_BYTES + len(header)
            whole = path.stat().length == data_start + states.end
            fits = states.shape == (len(prompts), *self.shape) and len(checksums) == len(prompts)
            same_encoder = metadata["encoder"] == self.digest
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
            raise InputError(_damaged(path, "its head")) from None
        if not same_encoder:
            raise InputError(f"{path}: of another encoder than {self.folder}: take it out there")
        size = states.end - states.start
        if not whole or not fits or size != len(prompts) * self.row_bytes:
            raise InputError(_damaged(path, "its length"))
        for number, (prompt, checksum) in enumerate(zip(prompts, checksums, strict=True)):
            offset = data_start + states.start + number * self.row_bytes
            self._rows.setdefault(prompt, _Row(path, number, offset, checksum))


def digest_of(encoder: Mapping[str, Any]) -> str:
    """Of what decides about an encoder's states."""
    return hashlib.sha256(json.dumps(encoder, sort_keys=True).encode()).hexdigest()


def _checksum(prompt: str, data: bytes) -> int:
    return crc32c.crc32c(data, crc32c.crc32c(prompt.encode()))


def _damaged(path: epath.Path, what: str) -> str:
    return f"{path}: {what} is damaged; remove that file, then embed its prompts again"
