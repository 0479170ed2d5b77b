"""CLIP's image tower as an extractor: a run of CLIP, or an import of its weights."""

import functools
from typing import Any

import jax.numpy as jnp
from etils import epath

from classifiers.clip.run import ClipRun
from classifiers.extractors.extractor import Extractor, Taps
from classifiers.models.clip import Clip
from launch.runtime.ema import MAIN
from launch.runtime.images import to_float
from launch.runtime.types import Array, Variables


def clip(path: epath.PathLike, ema: str = MAIN, best: bool = False) -> Extractor:
    """The extractor that a run's image tower is; images go through what its weights ask for.

    Args:
        path: of the run.
        ema: see `Run.variables`.
        best: see `Run.variables`.

    Raises:
        InputError: there is no such run, it is of another family, or is not finished.
    """
    return of_run(ClipRun.open(path, ema, best))


def of_run(run: ClipRun) -> Extractor:
    """The extractor that an opened run's image tower is."""
    return Extractor(
        name=run.name,
        rule=run.rule,
        digest=run.digest,
        apply=functools.partial(apply_to_images, run.model),
        variables=run.variables,
        transform=run.transform,
    )


def apply_to_images(model: Clip, variables: Variables, images: Array) -> Taps:
    """Features in the space of texts and spatial features of images uint8 [b, h, w, c]."""
    # Flax says any of what apply returns.
    result: Any = model.apply(
        variables, to_float(images), method="encode_images", mutable=["intermediates"]
    )
    features, state = result
    (spatial,) = state["intermediates"]["image"]["spatial"]
    return {"features": features, "spatial": spatial.astype(jnp.float32)}
