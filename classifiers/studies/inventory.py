"""What a study has: which images, how many, and how large its models are."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from classifiers import from_config
from classifiers.studies.plan import PlannedRun
from input_pipeline import sources
from input_pipeline.source import Source
from launch.errors import InputError
from launch.files import json_digest
from launch.runtime.config import load_config, plain


@dataclasses.dataclass(frozen=True)
class Inventory:
    """Counts, taken before anything is trained."""

    image_counts: dict[tuple[str, str], tuple[int, int]]  # real and synthetic, by (model, arm)
    model_sizes: dict[str, tuple[int, int]]  # by model: side of its input in pixels, parameters


def take_inventory(config: ml_collections.ConfigDict, runs: Sequence[PlannedRun]) -> Inventory:
    """Opens all sets of images, and computes the shapes of all models.

    Raises:
        InputError: a set is missing, damaged or too small, or a model has no such field.
    """
    opened: dict[str, Source] = {}

    def load(spec: Any) -> Source:
        # Arms share sets: each is opened once.
        key = json_digest(plain(spec))
        if key not in opened:
            opened[key] = sources.load(spec)
        return opened[key]

    def count(spec: Any) -> np.ndarray:
        return np.bincount(load(spec).domain, minlength=2)  # domains: 0 real, 1 synthetic

    load(evaluation_source(config))
    image_counts, model_sizes = {}, {}
    for run in runs:
        load(run.config.evaluation_source)
        # [real, synthetic]
        counts = np.sum([count(spec) for spec in run.config.train_sources.values()], axis=0)
        image_counts[run.model, run.arm.name] = (int(counts[0]), int(counts[1]))
        if run.model not in model_sizes:
            model_sizes[run.model] = model_size(run.config, load)
    return Inventory(image_counts, model_sizes)


def model_size(
    config: ml_collections.ConfigDict, load: Callable[[Any], Source] = sources.load
) -> tuple[int, int]:
    """Side of a model's input in pixels, and its number of parameters.

    Opens the evaluation images only where the config does not give classes and size.

    Raises:
        InputError: the model has no such field, or images that are needed are missing.
    """
    expected = from_config.expected_input(config)
    if expected is None:
        evaluation = load(config.evaluation_source)
        expected = len(evaluation.class_names), from_config.image_shape(config, evaluation)
    num_classes, shape = expected
    model = from_config.make_model(config.model, num_classes)
    init = functools.partial(from_config.init_model, model, image_shape=shape)
    params = jax.eval_shape(init, jax.random.key(0))["params"]
    return shape[0], sum(leaf.size for leaf in jax.tree.leaves(params))


def evaluation_source(config: ml_collections.ConfigDict) -> Any:
    """The source of the images that the study evaluates on.

    Raises:
        InputError: the evaluation's config cannot be read, or has no such set.
    """
    evaluation, name = load_config(config.evaluation.config), config.evaluation.set
    if "sets" not in evaluation:
        raise InputError(
            "config.evaluation.config must be a config of classifiers.evaluate, got "
            f"{config.evaluation.config}"
        )
    if name not in evaluation.sets:
        raise InputError(
            f"config.evaluation.set must be one of {', '.join(evaluation.sets)} "
            f"({config.evaluation.config}), got {name!r}"
        )
    return evaluation.sets[name].source
