"""Which images pass, and which of them are kept: rules, their combination, and draws by class."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int, Int64

from launch.errors import InputError

COMBINATIONS = ("all", "any")


@dataclasses.dataclass(frozen=True)
class Rule:
    """When an image passes: by `limit` or by `share`, exactly one of which is set."""

    best: str  # 'highest' or 'lowest' scores
    # What the score must exceed, or stay below if the lowest are best; one for all or one a class.
    limit: float | Sequence[float] | None = None
    share: float | None = None  # of the images, best first, in (0, 1]
    each_class: bool = True  # whether the share is of each class, or of the whole set

    def passes(
        self, scores: Float64[np.ndarray, " n"], labels: Int[np.ndarray, " n"]
    ) -> Bool[np.ndarray, " n"]:
        """Whether each image passes."""
        # Negating scores and limits alike makes 'lowest' the same case as 'highest'.
        goodness = self.goodness(scores)
        if self.limit is not None:
            limits = self.goodness(np.atleast_1d(np.asarray(self.limit, np.float64)))
            return goodness > (limits[labels] if len(limits) > 1 else limits)
        assert self.share is not None
        groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        passing = np.zeros(len(scores), bool)
        for group in groups if self.each_class else [np.arange(len(scores))]:
            # Stable sorts: ties go to the first images.
            count = round(self.share * len(group))
            passing[group[np.argsort(-goodness[group], kind="stable")[:count]]] = True
        return passing

    def goodness(self, scores: Float64[np.ndarray, " *n"]) -> Float64[np.ndarray, " *n"]:
        """The scores, negated if the lowest are best."""
        return scores if self.best == "highest" else -scores


def combine(passing: Sequence[Bool[np.ndarray, " n"]], how: str) -> Bool[np.ndarray, " n"]:
    """Whether 'all' filters or 'any' of them let each image pass."""
    return np.logical_and.reduce(passing) if how == "all" else np.logical_or.reduce(passing)


def check_per_class(labels: Int[np.ndarray, " n"], per_class: int) -> None:
    """Raises `InputError` if a class has fewer than `per_class` images."""
    values, counts = np.unique(labels, return_counts=True)
    if per_class > counts.min():
        raise InputError(
            "config.per_class must be at most the number of images of every class, got "
            f"{per_class}; label {values[counts.argmin()]} has {counts.min()} images"
        )


def draw(
    passing: Bool[np.ndarray, " n"],
    goodness: Float64[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    per_class: int,
    seed: int,
) -> Bool[np.ndarray, " n"]:
    """Takes `per_class` images of every class (He et al. 2023, appendix on the CLIP filter).

    If more pass, they are drawn at random; if fewer, the rest are the best by `goodness` that do
    not pass. See `check_per_class`.
    """
    kept = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        passed = members[passing[members]]
        if len(passed) >= per_class:
            kept[_drawn(passed, per_class, seed, int(label))] = True
        else:
            # lexsort's last key is the first to sort by: those that pass come first.
            order = np.lexsort((-goodness[members], ~passing[members]))
            kept[members[order[:per_class]]] = True
    return kept


def balanced(
    kept: Bool[np.ndarray, " n"], labels: Int[np.ndarray, " n"], seed: int
) -> Bool[np.ndarray, " n"]:
    """Equally many images of every class, as many as the smallest keeps, drawn at random."""
    present = np.unique(labels)
    fewest = min(int(kept[labels == label].sum()) for label in present)
    return random_part(kept, labels, dict.fromkeys(present.tolist(), fewest), seed)


def random_part(
    among: Bool[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    counts: dict[int, int],
    seed: int,
) -> Bool[np.ndarray, " n"]:
    """`counts[label]` images of each label, drawn at random from those in `among`."""
    # Each label has its own seed: its draw does not depend on other classes.
    chosen = np.zeros(len(labels), bool)
    for label, count in counts.items():
        chosen[_drawn(np.flatnonzero(among & (labels == label)), count, seed, label)] = True
    return chosen


def _drawn(
    members: Int64[np.ndarray, " n"], count: int, seed: int, label: int
) -> Int64[np.ndarray, " count"]:
    return np.random.default_rng((seed, label)).permutation(members)[:count]
