"""Real and synthetic images as one source, and as fixed shares of every batch."""

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
_ROW_STREAM = 2  # the stream of the domains' rows in a batch; theirs are REAL and SYNTHETIC


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
            raise InputError("a union needs at least one source; name one")
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
        """The number of the source and the name in it: two sources may use the same one."""
        number, local = self._locate(i)
        return f"{number}/{self._sources[number].key(local)}"

    def digest(self) -> str | None:
        """Of all sources, in their order."""
        return joined_digest(source.digest() for source in self._sources)

    def _locate(self, i: int) -> tuple[int, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"example {i} of {len(self)}")
        number = int(np.searchsorted(self._ends, i, side="right"))
        return number, int(i) - int(self._ends[number]) + len(self._sources[number])


class FixedWeight:
    """The plan in which synthetic images are the same share of every batch, however many there are.

    "Diversify, Don't Fine-Tune" (2023, section 3.3) gives each domain half. A domain runs through
    epochs of its own, with each of its examples once in each. Of the first k batches together,
    floor(k * batch_size * weight) rows are synthetic: the share is the same in every batch where
    batch_size * weight is whole, and otherwise one row more in some. Which rows they are is
    drawn anew for every batch; with weight 0 the batches are those of the real images alone.
    """

    def __init__(self, domain: Int32[np.ndarray, " n"], weight: Any, batch_size: int, seed: int):
        """Makes a plan.

        Args:
            domain: of each example: 0 real, 1 synthetic.
            weight: the share of the synthetic images, in [0, 1].
            batch_size: rows in a global batch.
            seed: any integer >= 0.

        Raises:
            InputError: see `check_weight`.
        """
        check_weight(domain, weight)
        # The fraction that is meant: as a float, 3 * (1 / 3) can be a little less than 1.
        self._weight = Fraction(weight).limit_denominator(10**9)
        self._batch_size, self._seed = batch_size, seed
        self._members = {d: np.flatnonzero(domain == d).astype(np.int32) for d in DOMAINS}
        self._epochs = {d: Epochs(len(members), seed, d) for d, members in self._members.items()}

    def __call__(self, k: int, rows: Int[np.ndarray, " p"]) -> Int64[np.ndarray, " p"]:
        """See `order.BatchPlan`."""
        before = self._synthetic_before(k)
        domains = np.arange(self._batch_size) < self._synthetic_before(k + 1) - before
        np.random.default_rng((self._seed, k, _ROW_STREAM)).shuffle(domains)
        first = {REAL: k * self._batch_size - before, SYNTHETIC: before}
        indices = np.empty(len(rows), np.int64)
        for domain, members in self._members.items():
            ranks = np.cumsum(domains == domain) - 1
            mine = domains[rows] == domain
            if mine.any():
                indices[mine] = members[self._epochs[domain](first[domain] + ranks[rows[mine]])]
        return indices

    def _synthetic_before(self, k: int) -> int:
        return int(k * self._batch_size * self._weight)


def check_weight(domain: Int32[np.ndarray, " n"], weight: Any) -> None:
    """Looks whether a weight can be kept.

    Args:
        domain: of each example: 0 real, 1 synthetic.
        weight: the share of the synthetic images in every batch.

    Raises:
        InputError: see `check_share`, or there are no images of a domain that it asks for.
    """
    check_share(weight)
    for kind, share in ((REAL, 1 - weight), (SYNTHETIC, weight)):
        if share and not (domain == kind).any():
            raise InputError(
                f"synthetic_weight={weight} needs {DOMAINS[kind]} images to fill "
                f"{share:.6g} of every batch; add a source of them, or leave it None"
            )


def check_share(weight: Any) -> None:
    """Looks at a weight without any images.

    Raises:
        InputError: it is no number in [0, 1].
    """
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not is_number or not 0 <= weight <= 1:
        raise InputError(
            "synthetic_weight must be the share of every batch that is synthetic, in [0, "
            f"1], or None, got {weight!r}"
        )
