"""Classifier-free guidance and thresholding (Imagen, section 2.2 and 2.3)."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

Image = Float[Array, "b h w c"]


def guided_eps(predict: Callable[[Image], Image], x: Image, weight: float) -> Image:
    """Guided noise: w eps(x, text) + (1 - w) eps(x, null).

    Args:
        predict: the network, at a fixed time; called once: at w = 1 with x and the prompts' text,
            else with x twice, first for the prompts, then for no text.
        x: noisy images.
        weight: w of Imagen; 1 is no guidance and no second evaluation.
    """
    if weight == 1.0:
        return predict(x)
    conditional, unconditional = jnp.split(predict(jnp.concatenate([x, x])), 2)
    return weight * conditional + (1.0 - weight) * unconditional


def threshold(x0: Image, percentile: float) -> Image:
    """Keeps predicted images in [-1, 1].

    Args:
        x0: predicted images.
        percentile: 100 clips (static thresholding); less divides each image by that percentile of
            its absolute values, where that exceeds 1 (dynamic thresholding).
    """
    if percentile < 100.0:
        limit = jnp.percentile(jnp.abs(x0), percentile, axis=(1, 2, 3), keepdims=True)
        limit = jnp.maximum(limit, 1.0)
        return jnp.clip(x0, -limit, limit) / limit
    return jnp.clip(x0, -1.0, 1.0)
