"""Which images pass, and which of those are kept: rules, their combination, and draws by class."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int, Int64

from launch.errors import InputError

COMBINATIONS = ("all", "any")


@dataclasses.dataclass(frozen=True)
class Rule:
    """When an image passes: one of `limit` and `share` is given.

    Attributes:
        best: whether the 'highest' or the 'lowest' scores are best.
        limit: what its score has to exceed (or stay below); one number, or one of each class.
        share: of the images that pass, best first, in (0, 1].
        each_class: whether the share is one of every class, and not of the whole set.
    """

    best: str
    limit: float | Sequence[float] | None = None
    share: float | None = None
    each_class: bool = True

    def passes(
        self, scores: Float64[np.ndarray, " n"], labels: Int[np.ndarray, " n"]
    ) -> Bool[np.ndarray, " n"]:
        """Whether each image passes."""
        goodness = self.goodness(scores)
        if self.limit is not None:
            limits = self.goodness(np.atleast_1d(np.asarray(self.limit, np.float64)))
            return goodness > (limits[labels] if len(limits) > 1 else limits)
        assert self.share is not None
        groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        passing = np.zeros(len(scores), bool)
        for group in groups if self.each_class else [np.arange(len(scores))]:
            count = round(self.share * len(group))
            passing[group[np.argsort(-goodness[group], kind="stable")[:count]]] = True
        return passing

    def goodness(self, scores: Float64[np.ndarray, " *n"]) -> Float64[np.ndarray, " *n"]:
        """The scores, turned so that the highest are best."""
        return scores if self.best == "highest" else -scores


def combine(passing: Sequence[Bool[np.ndarray, " n"]], how: str) -> Bool[np.ndarray, " n"]:
    """Images that 'all' rules, or 'any' of them, let pass."""
    return np.logical_and.reduce(passing) if how == "all" else np.logical_or.reduce(passing)


def check_per_class(labels: Int[np.ndarray, " n"], per_class: int) -> None:
    """Looks whether so many images of every class can be taken.

    Raises:
        InputError: a class has fewer.
    """
    values, counts = np.unique(labels, return_counts=True)
    if per_class > counts.min():
        raise InputError(
            f"config.per_class must be at most what each class has, got {per_class}; label "
            f"{values[counts.argmin()]} has {counts.min()} images"
        )


def draw(
    passing: Bool[np.ndarray, " n"],
    goodness: Float64[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    per_class: int,
    seed: int,
) -> Bool[np.ndarray, " n"]:
    """Takes so many images of every class (He et al. 2023, appendix on the CLIP filter).

    Of more that pass they are drawn at random; where fewer pass, the best are taken.

    Args:
        passing: whether each image passes.
        goodness: by which the best are taken, higher first; those that pass come before others.
        labels: of the images.
        per_class: how many of each; see `check_per_class`.
        seed: of the draw.
    """
    kept = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        passed = members[passing[members]]
        if len(passed) >= per_class:
            kept[_drawn(passed, per_class, seed, int(label))] = True
        else:
            order = np.lexsort((-goodness[members], ~passing[members]))
            kept[members[order[:per_class]]] = True
    return kept


def balanced(
    kept: Bool[np.ndarray, " n"], labels: Int[np.ndarray, " n"], seed: int
) -> Bool[np.ndarray, " n"]:
    """As many images of every class as the smallest one keeps, drawn at random."""
    present = np.unique(labels)
    fewest = min(int(kept[labels == label].sum()) for label in present)
    return random_part(kept, labels, dict.fromkeys(present.tolist(), fewest), seed)


def random_part(
    among: Bool[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    counts: dict[int, int],
    seed: int,
) -> Bool[np.ndarray, " n"]:
    """So many images of each label, drawn at random from those that are `among` the choice."""
    chosen = np.zeros(len(labels), bool)
    for label, count in counts.items():
        chosen[_drawn(np.flatnonzero(among & (labels == label)), count, seed, label)] = True
    return chosen


def _drawn(
    members: Int64[np.ndarray, " n"], count: int, seed: int, label: int
) -> Int64[np.ndarray, " count"]:
    return np.random.default_rng((seed, label)).permutation(members)[:count]
