"""Text states on disk, by prompt: each is computed once, and read without the encoder.

The folder's `encoder.json` identifies the encoder; for everything else see `RowCache`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float

from launch.runtime.checkpoints.row_cache import RowCache

DTYPES = ("bfloat16", "float16", "float32")


class TextCache(RowCache):
    """A cache that exists, open for reading and adding."""

    # Names of files and fields, and words of messages; see `RowCache`.
    HEAD = "encoder.json"
    MADE_FROM, NAMES, ARRAY = "encoder", "prompts", "states"
    LACKING = "is not a text cache; make one with python -m imagen_ft.text"
    OF_ANOTHER = "the states of another encoder"
    MEND = "embed its prompts again"

    shape: tuple[int, int]  # [length, d] of one prompt's states

    def _open(self) -> None:
        length, width = self.shape
        self.shape = length, width
        # Caches made from equal encoders hold the same states. The flags, of the command that
        # made it, are for messages.
        self.encoder = self.made_from
        self.flags = [str(flag) for flag in self.contents["flags"]]

    @classmethod
    def create(
        cls,
        folder: epath.PathLike,
        encoder: Mapping[str, Any],
        shape: tuple[int, int],
        flags: Sequence[str],
    ) -> "TextCache":
        """Starts an empty cache in a folder that exists."""
        cls.begin(folder, encoder, shape, flags=list(flags))
        return cls(folder)

    @property
    def digest(self) -> str:
        """Checksum of everything that decides the states."""
        return digest_of(self.encoder)

    def read(self, names: Sequence[str]) -> Float[np.ndarray, "n length d"]:
        """As `RowCache.read`, in float32."""
        return super().read(names).astype(np.float32)


def digest_of(encoder: Mapping[str, Any]) -> str:
    """Checksum of everything that decides an encoder's states."""
    # Sorted, since the order of a dict's keys must not matter.
    return hashlib.sha256(json.dumps(encoder, sort_keys=True).encode()).hexdigest()
