"""Noise for the states of the prompts, by image and time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Key

from imagen_ft.diffusion import guidance
from launch.runtime.types import Array

# (t) -> standard normal noise for the states of the prompts.
TextNoise = Callable[[Float[Array, ""]], Float[Array, "b n d"]]
# Folded into a key: never a sampler's step, which count from 0, nor `stage.CONDITION_STEP`.
_TEXT_STEP = 2**31 - 2


def noise_of_text(keys: Key[Array, " b"], text: Float[Array, "b n d"]) -> TextNoise:
    """Noise that depends on each image's key and the time alone, not on the number of steps."""

    def noise(t: Float[Array, ""]) -> Float[Array, "b n d"]:
        # fold_in takes integers; the bits of a float32 tell every time apart.
        bits = jax.lax.bitcast_convert_type(jnp.asarray(t, jnp.float32), jnp.uint32)

        def draw(key: Key[Array, ""]) -> Float[Array, "n d"]:
            of_texts = jax.random.fold_in(key, _TEXT_STEP)
            return jax.random.normal(jax.random.fold_in(of_texts, bits), text.shape[1:])

        return jax.vmap(draw)(keys)

    return noise


def annealed(
    text: Float[Array, "b n d"],
    noise: Float[Array, "b n d"],
    t: Float[Array, ""],
    *settings: Any,
    pooled_width: int = 0,
) -> Float[Array, "b n d"]:
    """`guidance.anneal`, with a pooled text, if any, in the last row by itself."""
    if not pooled_width:
        return guidance.anneal(text, noise, t, *settings)
    # The pooled text has another scale than the states, and is padded to their width.
    parts = slice(None, -1), slice(None)
    row = slice(-1, None), slice(None, pooled_width)
    result = jnp.asarray(text)
    for rows, columns in (parts, row):
        new = guidance.anneal(text[:, rows, columns], noise[:, rows, columns], t, *settings)
        result = result.at[:, rows, columns].set(new)
    return result
