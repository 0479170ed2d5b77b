"""Text states on disk, by prompt: every one is computed once, and read without the encoder.

`encoder.json` of the folder says what the states are of; all else is as in any `RowCache`.
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
    """A cache that exists, open for reading and for adding.

    Attributes:
        encoder: what decides about the states; caches with the same hold the same.
        shape: [length, d] of one prompt's states.
        flags: of the command, that stand for the encoder; for messages.
    """

    HEAD = "encoder.json"
    MADE_FROM, NAMES, ARRAY = "encoder", "prompts", "states"
    LACKING = "is not a text cache; make one with python -m imagen_ft.text"
    OF_ANOTHER = "the states of another encoder"
    MEND = "embed its prompts again"

    shape: tuple[int, int]

    def _open(self) -> None:
        length, width = self.shape
        self.shape = length, width
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
        """Begins an empty cache in a folder that exists; see the class for the arguments."""
        cls.begin(folder, encoder, shape, flags=list(flags))
        return cls(folder)

    @property
    def digest(self) -> str:
        """Of what decides about the states."""
        return digest_of(self.encoder)

    def read(self, names: Sequence[str]) -> Float[np.ndarray, "n length d"]:
        """As `RowCache.read`, in float32."""
        return super().read(names).astype(np.float32)


def digest_of(encoder: Mapping[str, Any]) -> str:
    """Of what decides about an encoder's states."""
    return hashlib.sha256(json.dumps(encoder, sort_keys=True).encode()).hexdigest()
