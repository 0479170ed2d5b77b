"""Parts of a source: listed records, some classes, or a number of images per class.

All draws take from one order of each class's images, given by seed and label. So a draw of fewer
images is part of a larger one, whether per class, for a long tail or for some classes only.
"""

from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Int64

from input_pipeline import imagenet
from input_pipeline.source import Example, Source, Subset, Wrapper
from input_pipeline.sources.kept_records import KeptRecords
from launch.errors import InputError, listed
from launch.fields import Fields

# The fields that every source in a config may have, see `apply`.
FIELDS = ("per_class", "subset_seed", "long_tail", "classes", "renumber", "keep")


class Renumbered(Wrapper):
    """Numbers a source's classes anew: `labels` has the old label of each new one."""

    def __init__(self, source: Source, labels: Sequence[int]):
        super().__init__(source)
        # Old label -> new label. All examples must be of these classes, so no -1 is read.
        new = np.full(len(source.class_names), -1, np.int32)
        new[list(labels)] = np.arange(len(labels))
        self.class_names = tuple(source.class_names[label] for label in labels)
        self.labels = new[source.labels]

    def __getitem__(self, i: SupportsIndex) -> Example:
        return {**self._source[i], "label": self.labels[i]}


def apply(source: Source, spec: Fields) -> Source:
    """The part of a source that a config asks for; InputError if a field is wrong.

    `spec` may have these fields, which are applied in this order:

    keep: a file of record keys, see `kept_records.KeptRecords`.
    classes: names or labels to keep. They become the labels 0, 1, ... in this order; with
        `renumber` False all classes keep their names and labels.
    per_class: the number of images of each; or long_tail, a dict of the arguments of
        `long_tail_counts` and `order`, see `long_tail`.
    subset_seed: of the draw of these images, 0 by default.
    """
    _check_together(spec)
    # 1. Listed records.
    if "keep" in spec:
        source = KeptRecords(source, spec["keep"])
    # 2. Some classes, under their old labels, so that draws do not depend on the renumbering.
    labels = None
    if "classes" in spec:
        labels = find_classes(source, spec["classes"])
        source = Subset(source, np.flatnonzero(np.isin(source.labels, labels)))
    # 3. A number of images per class.
    seed = spec.get("subset_seed", 0)
    if "per_class" in spec:
        source = per_class(source, spec["per_class"], seed, labels)
    if "long_tail" in spec:
        source = long_tail(source, dict(spec["long_tail"]), seed, labels)
    # 4. New labels.
    if labels is not None and spec.get("renumber", True):
        source = Renumbered(source, labels)
    return source


def _check_together(spec: Fields) -> None:
    if "per_class" in spec and "long_tail" in spec:
        raise InputError(
            f"per_class={spec['per_class']} and long_tail both set the number of images per class; "
            "leave one out"
        )
    if "subset_seed" in spec and not {"per_class", "long_tail"} & set(spec):
        raise InputError(
            f"subset_seed={spec['subset_seed']} draws nothing; add per_class or long_tail, or "
            "leave it out"
        )
    if "renumber" in spec and "classes" not in spec:
        raise InputError(f"renumber={spec['renumber']} needs classes; leave it out")
    if type(spec.get("renumber", True)) is not bool:
        raise InputError(f"renumber must be True or False, got {spec['renumber']!r}")
    if not hasattr(spec.get("long_tail", {}), "items"):
        raise InputError(f"long_tail must be dict(n_max=..., gamma=...), got {spec['long_tail']!r}")
    if type(n := spec.get("per_class", 1)) is not int or n < 1:
        raise InputError(f"per_class must be a whole number of at least 1, got {n!r}")
    seed = spec.get("subset_seed", 0)
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise InputError(f"subset_seed must be a whole number of at least 0, got {seed!r}")


def per_class(source: Source, n: int, seed: int, labels: Sequence[int] | None = None) -> Subset:
    """Draws n examples per class, or of the classes `labels`; a smaller n gives a part of them."""
    labels = range(len(source.class_names)) if labels is None else labels
    available = np.bincount(source.labels, minlength=len(source.class_names))
    for label in labels:
        if not isinstance(n, int | np.integer) or not 0 < n <= available[label]:
            raise InputError(
                f"per_class must be at most the {available[label]} images of class "
                f"{source.class_names[label]!r}, got {n}"
            )
    return _draw(source, dict.fromkeys(labels, n), seed)


def long_tail(
    source: Source, fields: Fields, seed: int, labels: Sequence[int] | None = None
) -> Subset:
    """Draws a long tail; one with fewer images, or steeper, is part of it.

    As in "Diversify, Don't Fine-Tune" (2023, appendix B) the counts are limits: a class with fewer
    images gives all it has.

    `fields` has `n_max` and `gamma`, see `long_tail_counts`, and `order`, which ranks the classes
    by 'label' (the default; in the order of `labels`) or by 'size', largest first. Raises
    InputError if one is missing, unknown or wrong, or no class has `n_max` images.
    """
    labels = range(len(source.class_names)) if labels is None else labels
    # 1. The fields.
    fields = {"order": "label", **fields}
    if set(fields) != {"n_max", "gamma", "order"}:
        raise InputError(
            "long_tail must have n_max and gamma, and may have order, got "
            f"{', '.join(sorted(fields))}"
        )
    if fields["order"] not in ("label", "size"):
        raise InputError(f"long_tail.order must be 'label' or 'size', got {fields['order']!r}")
    # 2. Counts by rank, of which the first must exist somewhere.
    counts = long_tail_counts(len(labels), fields["n_max"], fields["gamma"])
    available = np.bincount(source.labels, minlength=len(source.class_names))
    largest = max(labels, key=lambda label: available[label])
    if counts[0] > available[largest]:
        raise InputError(
            f"long_tail.n_max must be at most the {available[largest]} images of the "
            f"largest class, {source.class_names[largest]!r}, got {fields['n_max']}"
        )
    # 3. Rank the classes; sorting is stable, so classes of equal size stay ordered by label.
    if fields["order"] == "size":
        labels = sorted(labels, key=lambda label: -available[label])
    return _draw(source, dict(zip(labels, counts.tolist(), strict=True)), seed)


def long_tail_counts(num_classes: int, n_max: Any, gamma: Any) -> Int64[np.ndarray, " classes"]:
    """Images per class: exponential decline from `n_max` to `n_max / gamma`, rounded down.

    Cui et al. 2019 (Class-Balanced Loss, section 5.1). Raises InputError if the last class gets
    none.
    """
    if not all(isinstance(value, int | float) and value >= 1 for value in (n_max, gamma)):
        raise InputError(
            "long_tail.n_max and long_tail.gamma must be numbers of at least 1, got "
            f"{n_max!r} and {gamma!r}"
        )
    if n_max < gamma:
        raise InputError(
            f"long_tail.gamma must be from 1 to n_max={n_max}, so that the last class has "
            f"an image, got {gamma}"
        )
    # n_k = n_1 gamma^(-(k - 1) / (K - 1)), with k from 1 to K (Cui et al. 2019, section 5.1). The
    # 1e-9 is for whole numbers that floating point makes a little smaller.
    # ImageNet-LT is another distribution; its published list can be given as `keep`.
    k = np.arange(num_classes)
    exact = n_max * float(gamma) ** (-k / max(1, num_classes - 1))
    return np.floor(exact + 1e-9).astype(np.int64)


def _draw(source: Source, counts: Mapping[int, int], seed: int) -> Subset:
    # Indices of each class, ascending.
    order = np.argsort(source.labels, kind="stable")
    ends = np.cumsum(np.bincount(source.labels, minlength=len(source.class_names)))
    members = np.split(order, ends[:-1])
    # A generator per (seed, label): the order of a class does not depend on the others.
    chosen = [
        np.random.default_rng((seed, label)).permutation(members[label])[:count]
        for label, count in counts.items()
    ]
    return Subset(source, np.sort(np.concatenate(chosen)))


def find_classes(source: Source, classes: Any) -> list[int]:
    """Labels of classes given by name or label; InputError for an unknown or repeated one."""
    if not isinstance(classes, list | tuple) or not classes:
        raise InputError(f"classes must be a list of names or labels, got {classes!r}")
    names = {name: label for label, name in enumerate(source.class_names)}
    # The Hub's names of ImageNet's classes count too, where the source has WordNet ids; except
    # 'crane', which two classes share.
    words = imagenet.ids_of_lemmas()
    labels: list[int] = []
    for chosen in classes:
        if isinstance(chosen, str):
            label = names.get(chosen, names.get(words.get(chosen, "")))
        else:
            label = chosen
        if type(label) is not int or not 0 <= label < len(names):
            raise InputError(
                f"classes must be some of {listed(names)} ({len(names)} in total), got {chosen!r}"
            )
        if label in labels:
            raise InputError(f"classes must list each class once, got {chosen!r} twice")
        labels.append(label)
    return labels
