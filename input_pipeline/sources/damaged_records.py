"""What happens with unreadable records: an error, or another record of the same class instead."""

import threading
import weakref
from collections.abc import Mapping
from typing import Any, SupportsIndex

import numpy as np

from input_pipeline.source import Example, Source, Subset, Wrapper
from launch.cli import say
from launch.errors import InputError

POLICIES = ("error", "skip")
_TRIES = 100  # damaged records of a class in a row; more is no accident


class _DamageCount:
    """Damaged records and their replacements; reports the 1st, 2nd, 4th, 8th, ... on stderr."""

    def __init__(self, total: int):
        self.lock = threading.Lock()
        self.instead: dict[int, int] = {}
        self._total, self._said = total, 0

    def add(self, i: int, instead: int, error: InputError) -> None:
        with self.lock:
            if i in self.instead:
                return
            self.instead[i] = instead
            if len(self.instead) >= 2 * self._said:
                self._said = len(self.instead)
                self._say(f"; now {error}")

    def end(self) -> None:
        if len(self.instead) > self._said:
            self._say("")

    def _say(self, last: str) -> None:
        count = len(self.instead)
        say(
            f"on_damage=skip: {count} of {self._total} records are damaged; others of the same "
            f"class replace them{last}"
        )


class SkipDamaged(Wrapper):
    """A source that replaces a damaged record by the next sound one of the same class."""

    def __init__(self, source: Source):
        # It should be the outermost wrapper: a record of another split must not replace one.
        super().__init__(source)
        self._begin_count()

    @property
    def damaged(self) -> int:
        """The number of records found damaged so far."""
        return len(self._count.instead)

    def __getitem__(self, i: SupportsIndex) -> Example:
        """Example i or its replacement; InputError after too many damaged records in a row."""
        i = int(i)
        try:
            return self._source[self._count.instead.get(i, i)]
        except InputError as error:
            fault = InputError(str(error))  # a copy without frames, which would keep this source
        instead, example = self._next(i, fault)
        self._count.add(i, instead, fault)
        return example

    def _next(self, i: int, fault: InputError) -> tuple[int, Example]:
        # Candidates: records of the same class and domain, from the one after i round to the one
        # before.
        # So labels stay true, and every run makes the same choice.
        alike = np.flatnonzero((self.labels == self.labels[i]) & (self.domain == self.domain[i]))
        after = np.roll(alike, -int(np.searchsorted(alike, i, side="right")))[:-1]
        for j in after[:_TRIES].tolist():
            try:
                return j, self._source[j]
            except InputError:
                continue
        tried = min(len(after), _TRIES) + 1
        raise InputError(
            f"on_damage=skip: {tried} records of class {self.class_names[self.labels[i]]!r} in a "
            f"row are damaged, which is too many to skip: {fault}"
        )

    # The count has a lock, which cannot be pickled; each process counts its own.
    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_count", "_end")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin_count()

    def _begin_count(self) -> None:
        self._count = _DamageCount(len(self.labels))
        # Reports the last count when the source is deleted or the process exits.
        self._end = weakref.finalize(self, self._count.end)


def leave_out(source: Source, faults: Mapping[int, str], policy: str) -> Source:
    """Drops records too damaged to have a label (number -> fault); with policy 'error' raises."""
    if not faults:
        return source
    first = faults[min(faults)]
    left = np.setdiff1d(np.arange(len(source)), list(faults))
    if policy == "error" or not left.size:
        raise InputError(first)
    say(
        f"on_damage=skip: {len(faults)} of {len(source)} records have no readable label and are "
        f"left out; the first: {first}"
    )
    return Subset(source, left)
