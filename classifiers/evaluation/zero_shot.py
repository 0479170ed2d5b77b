"""Scores of image features against classes that are weights in the same space."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from classifiers.clip.run import ClipRun
from classifiers.evaluation.image_sets import EvaluationSet
from classifiers.evaluation.label_maps import LabelMap
from classifiers.evaluation.scores import Scores, judge
from classifiers.models.clip import products, unit
from input_pipeline import class_names
from input_pipeline.imagenet import wordnet_ids
from launch.errors import InputError
from launch.runtime.types import Array


def names_in_words(evaluation_set: EvaluationSet, named: str | Sequence[str]) -> tuple[str, ...]:
    """The names in sentences of the classes that compete on a set; with a label map, ImageNet's.

    `named` is `config.class_names`, see `class_names.resolve`; '' means the set's own names.

    Raises:
        InputError: there are more or fewer than the set has, or they are WordNet ids.
    """
    mapped = bool(evaluation_set.made_from["label_map"])
    images = wordnet_ids() if mapped else evaluation_set.label_map.class_names
    field = f"config.sets.{evaluation_set.name}.source"
    names = class_names.resolve(named or ("imagenet" if mapped else ""), images, field)
    # A sentence about n01440764 would run, and score at chance.
    if set(names) & set(wordnet_ids()):
        raise InputError(
            f"config.class_names must give the classes of {field} names in words, got "
            f"{names[0]!r}; set it to 'imagenet', or to a file with one name per line"
        )
    return names


def scale_and_bias(clip: ClipRun) -> tuple[float, float]:
    """What turns products of a run's features into logits."""
    # Flax says any of what apply returns.
    head: Any = clip.model.apply(clip.variables, method="head")
    return float(head[0]), float(head[1])


def scores_of_features(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    weights: Float[np.ndarray, "classes d"],
    label_map: LabelMap,
    scale: float,
    bias: float = 0.0,
    batch_size: int = 1024,
) -> Scores:
    """`scores.judge` of every image, from features of any length.

    `weights` are of unit length, one per class of the label map's model.
    """

    @jax.jit
    def step(batch: Array, batch_labels: Array) -> dict[str, Array]:
        logits = products(unit(batch), jnp.asarray(weights)) * scale + bias
        return judge(logits, batch_labels, label_map)

    parts = []
    for start in range(0, len(features), batch_size):
        rows = slice(start, start + batch_size)
        count = len(labels[rows])
        # The last batch repeats its rows up to the full size: one shape, one compilation.
        index = np.resize(np.arange(start, start + count), min(batch_size, len(features)))
        outputs = step(features[index], labels[index])
        parts.append({name: np.asarray(value)[:count] for name, value in outputs.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
