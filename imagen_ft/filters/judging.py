"""Judges every image of a set by the filters of a config, and chooses which to keep."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import ml_collections
import numpy as np
from jaxtyping import Bool, Float64, Int

from imagen_ft.evaluation.image_sets import ImageSet
from imagen_ft.filters import scores, selection
from imagen_ft.filters.from_config import Filter
from imagen_ft.metrics.neighbours import CONVENTIONS, neighbourhoods
from launch.errors import InputError

# (filter, set, tap) -> that output of the filter's extractor for the set's images, [n, ...].
See = Callable[[Filter, ImageSet, str], np.ndarray]
# By name of a part of the set, a value for each label; labels without a value are left out.
OfClasses = dict[str, dict[int, float]]


@dataclasses.dataclass(frozen=True)
class Judged:
    """What the filters say of every image of a set."""

    # By name of the filter: scores, and whether they pass.
    scores: dict[str, Float64[np.ndarray, " n"]]
    passing: dict[str, Bool[np.ndarray, " n"]]
    # The mean over filters of the image's rank, in (0, 1]; the best image has the highest.
    goodness: Float64[np.ndarray, " n"]
    # The images to keep; and as many of each class drawn at random: the baseline in training.
    kept: Bool[np.ndarray, " n"]
    random: Bool[np.ndarray, " n"]


def judge(
    config: ml_collections.ConfigDict,
    filters: Sequence[Filter],
    synthetic: ImageSet,
    real: ImageSet | None,
    see: See,
) -> Judged:
    """Scores all images, and chooses.

    Raises `InputError` if an extractor has other classes, a class has no real images, or nothing
    would be kept.
    """
    labels = synthetic.source.labels
    # 1. Scores and verdicts of each filter.
    found = {one.name: _score(one, synthetic, real, see) for one in filters}
    passing = {one.name: one.rule.passes(found[one.name], labels) for one in filters}
    # 2. One order over all filters: scores differ in scale, so their ranks are averaged.
    ranks = [_ranks(one.rule.goodness(found[one.name])) for one in filters]
    goodness = np.mean(ranks, axis=0)
    # 3. Choose: combine the filters, take equally many of each class if the config asks for it.
    kept = selection.combine(list(passing.values()), config.get("combine", "all"))
    seed = config.get("seed", 0)
    if per_class := config.get("per_class", 0):
        kept = selection.draw(kept, goodness, labels, per_class, seed)
    if not kept.any():
        rules = ", ".join(f"{one.name} ({one.describe()})" for one in filters)
        raise InputError(
            f"config.filters must keep at least one image, got none of {len(labels):,}; loosen "
            f"{rules}"
        )
    if config.get("balance", False):
        kept = _balanced(kept, synthetic, seed)
    # 4. The baseline: as many of each class, at random.
    counts = np.bincount(labels[kept], minlength=len(synthetic.source.class_names))
    everything = np.ones(len(labels), bool)
    of_labels = {label: int(counts[label]) for label in np.unique(labels).tolist()}
    random = selection.random_part(everything, labels, of_labels, seed)
    return Judged(found, passing, goodness, kept, random)


def neighbourhoods_of_classes(
    features: np.ndarray,
    labels: Int[np.ndarray, " n"],
    real: np.ndarray,
    real_labels: Int[np.ndarray, " m"],
    parts: Mapping[str, Bool[np.ndarray, " n"]],
) -> dict[str, OfClasses]:
    """Recall and coverage of real images by parts of a set, within each class, in [0, 1].

    Recall as in Kynkaanniemi et al. 2019 (k = 3), coverage as in Naeem et al. 2020 (k = 5). Returns
    'recall' and 'coverage', each by name of the part and label. Classes with at most k images are
    left out.
    """
    values: dict[str, OfClasses] = {}
    for measure, convention in (("recall", "adm"), ("coverage", "prdc")):
        # Each measure by the convention of its paper.
        rule = CONVENTIONS[convention]
        for name, part in parts.items():
            row = values.setdefault(measure, {}).setdefault(name, {})
            for label in np.unique(labels).tolist():
                ours, theirs = features[part & (labels == label)], real[real_labels == label]
                if min(len(ours), len(theirs)) > rule.k:
                    row[label] = getattr(neighbourhoods(ours, theirs, rule), measure)
    return values


def _score(
    one: Filter, synthetic: ImageSet, real: ImageSet | None, see: See
) -> Float64[np.ndarray, " n"]:
    labels = synthetic.source.labels
    # [n, ...] to [n, d].
    outputs = see(one, synthetic, one.tap)
    outputs = outputs.reshape(len(outputs), -1)
    # Two scores compare features with real images; the others need only logits.
    if one.kind.needs_real:
        assert real is not None
        theirs = see(one, real, one.tap).reshape(len(real.source), -1)
        others = theirs, real.source.labels
        if one.score == "nearest_real":
            return scores.nearest_real(outputs, labels, *others)
        return scores.class_distance(outputs, labels, *others, k=one.k)
    if outputs.shape[1] != len(synthetic.source.class_names):
        raise InputError(
            f"config.filters.{one.name}.extractor must be a classifier of the set's "
            f"{len(synthetic.source.class_names)} classes, got one of {outputs.shape[1]}; choose "
            "another"
        )
    function = scores.confidence if one.score == "confidence" else scores.margin
    return function(outputs, labels)


def _ranks(goodness: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    # In (0, 1], 1 for the highest; ties share the mean of their ranks.
    _, inverse, counts = np.unique(goodness, return_inverse=True, return_counts=True)
    # The ranks of a tie end at the cumulative count; half of its width back is their mean.
    means = np.cumsum(counts) - (counts - 1) / 2
    return means[inverse] / len(goodness)


def _balanced(
    kept: Bool[np.ndarray, " n"], synthetic: ImageSet, seed: int
) -> Bool[np.ndarray, " n"]:
    labels = synthetic.source.labels
    # Balancing to a class that keeps nothing would keep nothing at all.
    for label in np.unique(labels).tolist():
        if not kept[labels == label].any():
            raise InputError(
                "config.balance must leave images of every class, got none of "
                f"{synthetic.source.class_names[label]!r}, all dropped by the filters; loosen "
                "them, keep a share of each class, or set balance=False"
            )
    return selection.balanced(kept, labels, seed)
