"""Features of texts, and of classes as the mean of several sentences about them."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from classifiers.clip.run import ClipRun
from classifiers.clip.templates import fill
from classifiers.models.clip import Clip, unit
from launch.runtime.types import Array, Variables

# Texts per batch.
_BATCH = 64


def text_features(clip: ClipRun, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
    """Features of texts from the text tower; not of unit length.

    Raises:
        InputError: the run has no tokenizer, or one of another model.
    """
    tokens = clip.tokenizer(texts)
    step, parts = _encoder(clip.model), []
    for start in range(0, len(tokens), _BATCH):
        batch = tokens[start : start + _BATCH]
        padded = np.resize(batch, (_BATCH, batch.shape[1]))  # one shape, one compilation
        parts.append(np.asarray(step(clip.variables, padded))[: len(batch)])
    return np.concatenate(parts)


def class_weights(
    clip: ClipRun, class_names: Sequence[str], templates: Sequence[str]
) -> Float[np.ndarray, "classes d"]:
    """Per class: the mean of its sentences' features of unit length, of unit length again."""
    texts = [fill(template, name) for name in class_names for template in templates]
    features = unit(jnp.asarray(text_features(clip, texts)))
    # Radford et al. 2021, section 3.1.4. [classes * templates, d] to [classes, templates, d].
    means = features.reshape(len(class_names), len(templates), -1).mean(axis=1)
    return np.asarray(unit(means))


@functools.cache
def _encoder(model: Clip) -> Callable[[Variables, Array], Array]:
    @jax.jit
    def encode(variables: Variables, tokens: Array) -> Array:
        # Flax says any of what apply returns.
        features: Any = model.apply(variables, tokens, method="encode_texts")
        return features

    return encode
