"""Noise of the prompts' states, by image and time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Key

from imagen_ft.diffusion import guidance
from launch.runtime.types import Array

# (t) -> standard normal noise for the states of the prompts.
TextNoise = Callable[[Float[Array, ""]], Float[Array, "b n d"]]
# Apart from the noise of steps, which count from 0, and of conditions (`stage.CONDITION_STEP`).
_TEXT_STEP = 2**31 - 2


def noise_of_text(keys: Key[Array, " b"], text: Float[Array, "b n d"]) -> TextNoise:
    """Noise of each image's text by its key and the time alone, whatever the steps."""

    def noise(t: Float[Array, ""]) -> Float[Array, "b n d"]:
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
    """As `guidance.anneal`, a pooled text in the last row by itself: its numbers are of their own.

    Args:
        text: see there.
        noise: see there.
        t: see there.
        *settings: see there.
        pooled_width: of the pooled text; 0: there is none.
    """
    if not pooled_width:
        return guidance.anneal(text, noise, t, *settings)
    parts = slice(None, -1), slice(None)
    row = slice(-1, None), slice(None, pooled_width)
    result = jnp.asarray(text)
    for rows, columns in (parts, row):
        new = guidance.anneal(text[:, rows, columns], noise[:, rows, columns], t, *settings)
        result = result.at[:, rows, columns].set(new)
    return result
