"""Accuracy of classes with many, a medium number of, and few training images.

The convention for long-tailed ImageNet of "Diversify, Don't Fine-Tune" (2023, appendix B): many is
more than 800, few is fewer than 300.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from classifiers.evaluation.evaluated_runs import EvaluatedRun
from classifiers.evaluation.label_maps import LabelMap
from input_pipeline import sources
from launch.errors import InputError
from launch.fields import Fields
from launch.runtime.config import plain

GROUPS = ("many", "medium", "few")
_FIELDS = ("source", "many", "few")


def check(spec: Fields) -> None:
    """Raises InputError for a wrong field of `config.shots`."""
    if set(spec) != set(_FIELDS):
        raise InputError(
            f"config.shots must have the fields {', '.join(_FIELDS)}, got {', '.join(spec)}"
        )
    if not 0 < spec["few"] <= spec["many"]:
        raise InputError(
            f"config.shots must have few above 0 and many at least as large, got few={spec['few']} "
            f"(classes with fewer images) and many={spec['many']} (classes with more)"
        )


def count_images(spec: Fields, runs: Sequence[EvaluatedRun]) -> Int[np.ndarray, " model_classes"]:
    """Images of each class that the runs were trained on, from `spec["source"]`.

    Raises:
        InputError: the source is missing, or has other classes than a run.
    """
    try:
        source = sources.load(plain(spec["source"]))
    except InputError as error:
        raise InputError(f"config.shots.source: {error}") from None
    names = list(source.class_names)
    for run in runs:
        if len(names) != run.num_classes or (run.class_names or names) != names:
            raise InputError(
                f"config.shots.source must have the {run.num_classes} classes that "
                f"{run.path} was trained for, got {len(names)}; name its training images"
            )
    return np.bincount(source.labels, minlength=len(names))


def groups(
    counts: Int[np.ndarray, " model_classes"], label_map: LabelMap, spec: Fields
) -> list[str]:
    """The group of `GROUPS` of each class of a set; both limits of `spec` belong to medium."""
    mapped = label_map.answers >= 0
    # A class that several of the model's classes mean has the sum of their images.
    images = np.bincount(
        label_map.answers[mapped], weights=counts[mapped], minlength=len(label_map.class_names)
    )
    many, few = images > spec["many"], images < spec["few"]
    return ["many" if m else "few" if f else "medium" for m, f in zip(many, few, strict=True)]


def accuracies(
    per_class: Sequence[float | None], of_classes: Sequence[str]
) -> dict[str, float | None]:
    """Mean accuracy over the classes of each group; None for a group without any."""
    means = {}
    for group in GROUPS:
        rows = zip(per_class, of_classes, strict=True)
        values = [value for value, of in rows if of == group and value is not None]
        means[group] = float(np.mean(values)) if values else None
    return means
