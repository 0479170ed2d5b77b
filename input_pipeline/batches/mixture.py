"""Real and synthetic images as one source, and with a fixed share of every batch."""

import operator
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Int, Int32, Int64

from input_pipeline.batches.order import Epochs
from input_pipeline.source import REAL, Example, Source, check_same_classes, joined_digest
from input_pipeline.synthetic.source import SYNTHETIC
from launch.errors import InputError

DOMAINS = {REAL: "real", SYNTHETIC: "synthetic"}
# Random streams of a seed: 0 (REAL) and 1 (SYNTHETIC) order the examples of a domain, this one the
# rows of a batch.
_ROW_STREAM = 2


class Union:
    """All examples of several sources, one source after the other; each example counts the same."""

    def __init__(self, sources: Sequence[Source]):
        """Joins sources; InputError unless they have the same class names in the same order."""
        if not sources:
            raise InputError("a union needs at least one source; add one")
        for number, source in enumerate(sources):
            check_same_classes(
                "source 0", sources[0].class_names, f"source {number}", source.class_names
            )
        self._sources = tuple(sources)
        self._ends = np.cumsum([len(source) for source in sources])
        self.class_names = tuple(sources[0].class_names)
        self.labels = np.concatenate([source.labels for source in sources])
        self.domain = np.concatenate([source.domain for source in sources])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, i: SupportsIndex) -> Example:
        number, local = self._locate(operator.index(i))
        return self._sources[number][local]

    def key(self, i: int) -> str:
        """`source/key`, with the source's number, as two sources may use the same key."""
        number, local = self._locate(i)
        return f"{number}/{self._sources[number].key(local)}"

    def digest(self) -> str | None:
        """Covers all sources, in their order."""
        return joined_digest(source.digest() for source in self._sources)

    def _locate(self, i: int) -> tuple[int, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"example {i} of {len(self)}")
        # The first source that ends after i.
        number = int(np.searchsorted(self._ends, i, side="right"))
        return number, int(i) - int(self._ends[number]) + len(self._sources[number])


class FixedWeight:
    """A plan with a fixed share of synthetic images in every batch, however many there are.

    "Diversify, Don't Fine-Tune" (2023, section 3.3) gives each domain half. Each domain runs
    through epochs of its own. The first k batches together have floor(k * batch_size * weight)
    synthetic rows: the same number in every batch if batch_size * weight is whole, else sometimes
    one more. The rows they take are drawn anew for every batch; with weight 0 the batches are those
    of the real images alone.
    """

    def __init__(self, domain: Int32[np.ndarray, " n"], weight: Any, batch_size: int, seed: int):
        """`domain` is 0 for real and 1 for synthetic, `weight` in [0, 1]; see `check_weight`."""
        check_weight(domain, weight)
        # The exact fraction: in floats 100 * 0.29 is less than 29.
        self._weight = Fraction(weight).limit_denominator(10**9)
        self._batch_size, self._seed = batch_size, seed
        # Indices in the source of each domain's examples; its epochs run over these.
        self._members = {d: np.flatnonzero(domain == d).astype(np.int32) for d in DOMAINS}
        self._epochs = {d: Epochs(len(members), seed, d) for d, members in self._members.items()}

    def __call__(self, k: int, rows: Int[np.ndarray, " p"]) -> Int64[np.ndarray, " p"]:
        """See `order.BatchPlan`."""
        # 1. [batch_size]: which rows are synthetic. The same on every process.
        before = self._synthetic_before(k)
        domains = np.arange(self._batch_size) < self._synthetic_before(k + 1) - before
        np.random.default_rng((self._seed, k, _ROW_STREAM)).shuffle(domains)
        # 2. Where each domain is in its own run when the batch begins.
        first = {REAL: k * self._batch_size - before, SYNTHETIC: before}
        indices = np.empty(len(rows), np.int64)
        for domain, members in self._members.items():
            # 3. The n-th row of a domain in the batch takes the n-th example from there.
            ranks = np.cumsum(domains == domain) - 1
            mine = domains[rows] == domain
            if mine.any():
                indices[mine] = members[self._epochs[domain](first[domain] + ranks[rows[mine]])]
        return indices

    def _synthetic_before(self, k: int) -> int:
        return int(k * self._batch_size * self._weight)


def check_weight(domain: Int32[np.ndarray, " n"], weight: Any) -> None:
    """Raises InputError if a weight is not in [0, 1], or needs images of a domain that has none."""
    check_share(weight)
    for kind, share in ((REAL, 1 - weight), (SYNTHETIC, weight)):
        if share and not (domain == kind).any():
            raise InputError(
                f"synthetic_weight={weight} needs {DOMAINS[kind]} images to fill "
                f"{share:.6g} of every batch; add a source of them, or leave it out"
            )


def check_share(weight: Any) -> None:
    """Raises InputError unless a weight is a number in [0, 1]; needs no images."""
    # bool is an int to Python.
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not is_number or not 0 <= weight <= 1:
        raise InputError(
            "synthetic_weight must be the synthetic share of every batch, in [0, 1], or None, got "
            f"{weight!r}"
        )
