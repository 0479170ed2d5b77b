"""Real and synthetic images as one source."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from input_pipeline.files import InputError
from input_pipeline.sources import Source


class Union:
    """All examples of several sources, one source after the other.

    Every example counts the same, so a larger source fills more of each batch.
    """

    def __init__(self, sources: Sequence[Source]):
        """Joins sources.

        Raises:
            InputError: there is none, or they do not have the same class names in the same order.
        """
        if not sources:
            raise InputError("a union of no sources; name at least one")
        for number, source in enumerate(sources):
            if tuple(source.class_names) != tuple(sources[0].class_names):
                raise InputError(
                    f"source {number} has classes {source.class_names}, source 0 has "
                    f"{sources[0].class_names}; join sources of the same classes"
                )
        self._sources = tuple(sources)
        self._ends = np.cumsum([len(source) for source in sources])
        self.class_names = tuple(sources[0].class_names)
        self.labels = np.concatenate([source.labels for source in sources])
        self.domain = np.concatenate([source.domain for source in sources])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, i: int) -> dict[str, Any]:
        number, local = self._at(i)
        return self._sources[number][local]

    def key(self, i: int) -> str:
        """The number of the source and the name in it: two sources may use the same one."""
        number, local = self._at(i)
        return f"{number}/{self._sources[number].key(local)}"

    def _at(self, i: int) -> tuple[int, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"example {i} of {len(self)}")
        number = int(np.searchsorted(self._ends, i, side="right"))
        return number, int(i) - int(self._ends[number]) + len(self._sources[number])
