"""CLIP's image towers as extractors, from a trained run or an import of weights."""

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Float

from classifiers.clip.run import ClipRun
from classifiers.clip.text_features import class_weights
from classifiers.extractors.extractor import Extractor, Taps
from classifiers.extractors.features import kept_array
from classifiers.extractors.pixel_rules import in_colour
from classifiers.models.clip import Clip
from launch.errors import InputError
from launch.runtime.ema import MAIN
from launch.runtime.images import to_float
from launch.runtime.types import Array, Variables


def clip(path: epath.PathLike, ema: str = MAIN, best: bool = False) -> Extractor:
    """The image tower of the run at `path` as an extractor; errors are those of `ClipRun.open`."""
    return of_run(ClipRun.open(path, ema, best))


def of_run(run: ClipRun) -> Extractor:
    """The image tower of an opened run as an extractor."""
    return Extractor(
        name=run.name,
        rule=run.rule,
        digest=run.digest,
        apply=functools.partial(apply_to_images, run.model),
        variables=run.variables,
        transform=run.transform,
    )


def kept_class_weights(
    run: ClipRun, class_names: Sequence[str], templates: Sequence[str], folder: epath.PathLike
) -> Float[np.ndarray, "classes d"]:
    """`text_features.class_weights`, kept in a folder; every process must call it."""
    origin = {"digest": run.digest, "classes": list(class_names), "templates": list(templates)}
    make = functools.partial(class_weights, run, class_names, templates)
    return kept_array(folder, f"classes-{run.name}", origin, make)


def apply_to_images(model: Clip, variables: Variables, images: Array) -> Taps:
    """Features in the space of texts, and spatial ones, of images uint8 [b, h, w, c]."""
    # Some CLIPs of ours are for grey images: the first kernel tells.
    first = variables["params"]["image"]
    kernel = first.get("patch_embed", first.get("stem_conv_0"))["kernel"]  # [h, w, channels, d]
    if kernel.shape[2] == 1 and images.shape[-1] != 1:
        raise InputError(
            f"images must be grey for this CLIP, got {images.shape[-1]} channels; use another CLIP"
        )
    images = images if kernel.shape[2] == 1 else in_colour(images)
    # Flax says any of what apply returns.
    result: Any = model.apply(
        variables, to_float(images), method="encode_images", mutable=["intermediates"]
    )
    features, state = result
    (spatial,) = state["intermediates"]["image"]["spatial"]
    return {"features": features, "spatial": spatial.astype(jnp.float32)}
