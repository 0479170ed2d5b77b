"""The sets of an evaluation: opened, with their labels mapped to the classes of the models."""

import dataclasses
import re
from typing import Any, SupportsIndex

import numpy as np

from classifiers.evaluation import label_maps
from classifiers.evaluation.label_maps import LabelMap
from input_pipeline import sources
from input_pipeline.source import Example, Source, Subset, Wrapper, check_labels
from input_pipeline.sources.subsets import Renumbered
from launch.errors import InputError
from launch.fields import Fields
from launch.runtime.config import plain

_FIELDS = ("source", "label_map", "prepare")


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """A set of labelled images to evaluate on."""

    name: str
    source: Source  # labels are positions in `label_map.class_names`
    label_map: LabelMap  # from the model's classes to the set's
    made_from: dict[str, Any]  # what results depend on, for JSON

    def check_model(self, run: Any, num_classes: int, class_names: list[str] | None) -> None:
        """Raises InputError where predictions of a model do not fit this set's labels."""
        where = f"config.sets.{self.name}"
        map_classes, mapped = self.label_map.num_model_classes, self.made_from["label_map"]
        if num_classes != map_classes:
            needs = (
                f"label_map={mapped!r} needs the {map_classes:,} classes of ImageNet"
                if mapped
                else f"the set has {map_classes}; choose another set, or a label_map"
            )
            raise InputError(f"{where}: {run} was trained for {num_classes} classes, {needs}")
        if class_names is None:
            return
        expected = list(label_maps.wordnet_ids()) if mapped else list(self.label_map.class_names)
        if mapped and not set(class_names) & set(expected):
            return  # the same classes by other names, as far as one can tell
        # The same names in another order would give plausible, wrong accuracies.
        for label, (expected_name, name) in enumerate(zip(expected, class_names, strict=True)):
            if expected_name != name:
                raise InputError(
                    f"{where}: label {label} must be {name!r}, as for {run}, got "
                    f"{expected_name!r}; evaluate on a set with the class names and the "
                    "order of the training set"
                )


class WithoutBorder(Wrapper):
    """A source whose images have lost `pixels` on each side."""

    def __init__(self, source: Source, pixels: int):
        super().__init__(source)
        self._inside = slice(pixels, -pixels)

    def __getitem__(self, i: SupportsIndex) -> Example:
        example = self._source[i]
        return {**example, "image": example["image"][self._inside, self._inside]}


def check_specs(specs: Fields) -> None:
    """Raises InputError for a wrong field of `config.sets`; opens nothing."""
    if not specs:
        raise InputError("config.sets is empty; add a set, sets.NAME = dict(source=...)")
    for name, spec in specs.items():
        where = f"config.sets.{name}"
        if not re.fullmatch(r"[\w.+-]+", name):
            raise InputError(
                f"{where}: the name must consist of letters, digits, _ and -, as it becomes part "
                "of a file name"
            )
        if unknown := sorted(set(spec) - set(_FIELDS)):
            raise InputError(f"{where} has no field {unknown[0]!r}; use {', '.join(_FIELDS)}")
        if "source" not in spec:
            raise InputError(
                f"{where} needs the field 'source', a dict for input_pipeline.sources.load"
            )
        mapped = spec.get("label_map", "")
        if mapped and mapped not in label_maps.MAPS:
            maps = ", ".join(map(repr, label_maps.MAPS))
            raise InputError(f"{where}.label_map must be one of '', {maps}, got {mapped!r}")


def open_sets(specs: Fields) -> dict[str, EvaluationSet]:
    """Opens the sets of `config.sets`.

    Each has `source`, see `sources.load`; `label_map`, see `label_maps`; and `prepare`, advice for
    where it is missing.

    Raises:
        InputError: one is wrong, missing or damaged, or has other classes than its label map.
    """
    check_specs(specs)
    return {name: _open(name, plain(spec)) for name, spec in specs.items()}


def _open(name: str, spec: dict[str, Any]) -> EvaluationSet:
    mapped = spec.get("label_map", "")
    try:
        source = sources.load(spec["source"])
        check_labels(source)
        label_map = label_maps.resolve(mapped, source.class_names, "classes" in spec["source"])
    except InputError as error:
        # Most sets are downloaded and unpacked by hand: the config says how.
        prepare = spec.get("prepare")
        advice = f"; to prepare the set: {prepare}" if prepare else ""
        raise InputError(f"config.sets.{name}: {error}{advice}") from None
    made_from = {"source": spec["source"], "label_map": mapped, "digest": source.digest()}
    return EvaluationSet(name, _mapped(source, label_map), label_map, made_from)


def _mapped(source: Source, label_map: LabelMap) -> Source:
    source_labels = label_map.source_labels.tolist()
    if source_labels != list(range(len(source.class_names))):
        # Drop images of classes that are not evaluated, and number the others anew.
        kept = np.flatnonzero(np.isin(source.labels, source_labels))
        source = Renumbered(Subset(source, kept), source_labels)
    return WithoutBorder(source, label_map.border) if label_map.border else source
