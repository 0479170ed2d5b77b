"""Parts of a source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from input_pipeline.files import InputError

if TYPE_CHECKING:
    from input_pipeline.sources import Source


class Subset:
    """The examples of a source at the given indices, in their order."""

    def __init__(self, source: Source, indices: Int[np.ndarray, " m"]):
        """Makes a subset; an index may occur several times."""
        self.indices = np.asarray(indices, np.int64)
        self._source = source
        self.class_names = source.class_names
        self.labels = source.labels[self.indices]
        self.domain = source.domain[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self._source[int(self.indices[i])]

    def key(self, i: int) -> str:
        """The name of example i in the whole source."""
        return self._source.key(int(self.indices[i]))


def per_class(source: Source, n: int, seed: int) -> Subset:
    """Draws n examples of every class; a smaller n with the same seed gives a part of them.

    Raises:
        InputError: a class has fewer than n examples.
    """
    chosen = []
    for label, name in enumerate(source.class_names):
        indices = np.flatnonzero(source.labels == label)
        if not 0 < n <= len(indices):
            raise InputError(
                f"per_class={n}, but class {name!r} has {len(indices)} images; choose 1 to "
                f"{len(indices)}"
            )
        chosen.append(np.random.default_rng((seed, label)).permutation(indices)[:n])
    return Subset(source, np.sort(np.concatenate(chosen)))
