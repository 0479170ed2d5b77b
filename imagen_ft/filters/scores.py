"""Scores that filters judge images by, from a classifier's logits or from real images."""

import dataclasses

import numpy as np
from jaxtyping import Float, Float64, Int

from imagen_ft.metrics.neighbours import nearest
from imagen_ft.metrics.points import points_of
from launch.errors import InputError


@dataclasses.dataclass(frozen=True)
class Score:
    """A row of the table of scores."""

    tap: str  # the output of the extractor that it reads: 'logits' or 'features'
    needs_real: bool  # whether it compares with real images
    best: str  # 'highest' or 'lowest'
    limit: float | str | None  # what an image must exceed by default; None: the config must say it
    meaning: str  # in words, for a report


# A limit that depends on the set: 1 / number of classes.
CHANCE = "chance"
SCORES = {
    "confidence": Score("logits", False, "highest", CHANCE, "probability of the image's own class"),
    "margin": Score(
        "logits", False, "highest", 0.0, "log probability of its own class less the next best's"
    ),
    "nearest_real": Score(
        "features",
        True,
        "highest",
        0.0,
        "distance to the nearest real image of another class less that to its own class's nearest",
    ),
    "distance": Score(
        "features", True, "lowest", None, "mean distance to the k nearest real images of its class"
    ),
}


def confidence(
    logits: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]
) -> Float64[np.ndarray, " n"]:
    """Probability of each image's own class, in [0, 1] (the CLIP filter of He et al. 2023)."""
    return np.exp(_log_probabilities(logits)[np.arange(len(labels)), labels])


def margin(
    logits: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]
) -> Float64[np.ndarray, " n"]:
    """Log probability of the own class minus that of the best other one; negative if mistaken."""
    # The softmax's denominator cancels: logits suffice.
    own = np.arange(len(labels)), labels
    others = logits.astype(np.float64)
    ours = others[own].copy()
    others[own] = -np.inf
    return ours - others.max(axis=1)


def nearest_real(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    real: Float[np.ndarray, "m d"],
    real_labels: Int[np.ndarray, " m"],
) -> Float64[np.ndarray, " n"]:
    """Distance to the nearest real image of another class minus that to one of the own class.

    Negative if the nearest real image is of another class: those are the images that the real
    filter of He et al. 2023 drops. Distances are between features of length 1, in [0, 2]. Raises
    `InputError` if a class of the images has no real one, or if there is only one class.
    """
    _check_classes(labels, real_labels)
    if len(np.unique(real_labels)) < 2:
        raise InputError(
            "config.real must have images of at least 2 classes for the score 'nearest_real', got "
            "one; leave the filter out"
        )
    features, real = _of_length_one(features), _of_length_one(real)
    scores = np.empty(len(labels))
    for label in np.unique(labels):
        rows, own = labels == label, real_labels == label  # [n], [m]
        to_own, to_others = (
            _distances(features[rows], real[of]).mean(axis=1) for of in (own, ~own)
        )
        scores[rows] = to_others - to_own
    return scores


def class_distance(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    real: Float[np.ndarray, "m d"],
    real_labels: Int[np.ndarray, " m"],
    k: int,
) -> Float64[np.ndarray, " n"]:
    """Mean distance to the k nearest real images of the own class, or to all if it has fewer.

    Distances are between features of length 1, in [0, 2]. Raises `InputError` if a class of the
    images has no real one.
    """
    _check_classes(labels, real_labels)
    features, real = _of_length_one(features), _of_length_one(real)
    scores = np.empty(len(labels))
    for label in np.unique(labels):
        rows = labels == label
        scores[rows] = _distances(features[rows], real[real_labels == label], k).mean(axis=1)
    return scores


def _log_probabilities(logits: Float[np.ndarray, "n classes"]) -> Float64[np.ndarray, "n classes"]:
    # Subtracting the maximum keeps exp from overflowing.
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _of_length_one(features: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, "n d"]:
    # In float64, so that the distance of two almost equal features keeps its digits.
    lengths = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    return features / np.maximum(lengths, np.finfo(np.float32).tiny)


def _distances(
    rows: Float64[np.ndarray, "n d"], columns: Float64[np.ndarray, "m d"], k: int = 1
) -> Float64[np.ndarray, "n k"]:
    # To the k nearest columns, ascending: [n, k].
    ours, theirs = points_of(rows, columns)
    return np.sqrt(nearest(ours, theirs, min(k, len(columns)))[0])


def _check_classes(labels: Int[np.ndarray, " n"], real_labels: Int[np.ndarray, " m"]) -> None:
    missing = np.setdiff1d(labels, real_labels)
    if missing.size:
        raise InputError(
            "config.real must have images of every class of the set, got none of label "
            f"{missing[0]}; choose another set of real images"
        )
