"""Any of our classifiers as an extractor: a run of classifiers.train, or an import of weights."""

import functools
from typing import Any

import jax.numpy as jnp
from etils import epath

from classifiers import from_config
from classifiers.extractors.extractor import Extractor, Taps
from classifiers.models.presets import Classifier
from launch.errors import InputError
from launch.runtime.ema import MAIN
from launch.runtime.images import to_float
from launch.runtime.run import CLASSIFIER, Run
from launch.runtime.types import Array, Variables


def classifier(
    path: epath.PathLike, seed: int = 0, ema: str = MAIN, best: bool = False
) -> Extractor:
    """The network of a run's seed as an extractor; images are prepared as the run evaluates them.

    Raises:
        InputError: there is no such run or seed, it is of another task, or unfinished.
    """
    run = Run.open(path)
    if run.kind != CLASSIFIER:
        raise InputError(f"{path} is not a run of classifiers.train; use one, or an import")
    if not 0 <= seed < run.config.seeds:
        raise InputError(f"seed must be from 0 to {run.config.seeds - 1}, got {seed}: see {path}")
    trained = run.seeds[seed]
    shapes = trained.shapes()
    model = from_config.make_model(run.config.model, shapes["params"]["head"]["bias"].shape[0])
    # Without `evaluation`, images are evaluated at the size of training.
    fields = run.config.get("evaluation") or {"size": (run.config.get("augment") or {}).get("size")}
    rule = ", ".join(f"{name} {value}" for name, value in sorted(fields.items()) if value)
    return Extractor(
        name=run.path.name,
        rule=f"as evaluated ({rule or 'whole images'})",
        digest=trained.digest(ema, best),
        apply=functools.partial(apply_to_images, model),
        variables=trained.variables(shapes, ema, best),
        transform=from_config.make_transform(run.config),
        class_names=tuple(from_config.load_class_names(run.path) or ()),
    )


def apply_to_images(model: Classifier, variables: Variables, images: Array) -> Taps:
    """Logits, features and spatial features of images uint8 [b, h, w, c]."""
    logits, taps = tapped(model, variables, to_float(images))
    return taps | {"logits": logits}


def tapped(
    model: Classifier, variables: Variables, images: Array, **options: Any
) -> tuple[Array, Taps]:
    """Outputs for images [b, h, w, c] in [-1, 1], and the intermediates in float32."""
    # Flax says any of what apply returns.
    result: Any = model.apply(variables, images, mutable=["intermediates"], **options)
    said, state = result
    taps = {name: value.astype(jnp.float32) for name, (value,) in state["intermediates"].items()}
    return said, taps
