"""CLIP with class names as an extractor with logits: a classifier without training."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from classifiers.clip.run import ClipRun
from classifiers.clip.text_features import class_weights
from classifiers.extractors.clip import apply_to_images, of_run
from classifiers.extractors.extractor import Extractor, Taps
from classifiers.models.clip import Clip, products, unit
from launch.files import json_digest
from launch.runtime.types import Array, Variables

# Class weights travel in the variables: as constants of the program they would be compiled in.
_CLASSES = "classes"


def zero_shot(run: ClipRun, class_names: Sequence[str], sentences: Sequence[str]) -> Extractor:
    """A run's image tower with logits for classes (Radford et al. 2021, section 3.1).

    A class is the mean of the features of `sentences`, each with {} for its name, of unit length.

    Raises:
        InputError: the run has no tokenizer, or one of another model.
    """
    weights = class_weights(run, class_names, sentences)
    return dataclasses.replace(
        of_run(run),
        digest=json_digest([run.digest, list(class_names), list(sentences)]),
        apply=functools.partial(_apply, run.model),
        variables={**run.variables, _CLASSES: weights},
    )


def _apply(model: Clip, variables: Variables, images: Array) -> Taps:
    own = {name: tree for name, tree in variables.items() if name != _CLASSES}
    taps = apply_to_images(model, own, images)
    # Flax says any of what apply returns.
    head: Any = model.apply(own, method="head")
    scale, bias = head
    cosines = products(unit(taps["features"]), variables[_CLASSES])
    return {**taps, "logits": cosines * scale + bias}
