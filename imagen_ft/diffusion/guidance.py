"""Classifier-free guidance and thresholding (Imagen, section 2.2 and 2.3)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from launch.runtime.types import Array


def guide(
    output: Float[Array, "two_b h w c"], weight: float | Float[Array, ""], channels: int
) -> Float[Array, "b h w c"]:
    """Guided output of a doubled batch: w output(x, text) + (1 - w) output(x, null).

    Imagen writes it for eps. For x_0 and v it is the same: each is an affine function of eps, and
    the weights add up to 1.

    Args:
        output: of the network, first for the prompts, then for no text.
        weight: w of Imagen; 1 is no guidance.
        channels: how many of the output's channels are eps, x_0 or v; what is behind them
            (DeepFloyd IF's variance) is that of the prompts.

    Returns:
        The output for the prompts, its first channels guided.
    """
    conditional, unconditional = jnp.split(output, 2)
    guided = weight * conditional[..., :channels] + (1.0 - weight) * unconditional[..., :channels]
    return jnp.concatenate([guided, conditional[..., channels:]], axis=-1)


def threshold(
    x0: Float[Array, "b h w c"], percentile: float, maximum: float = float("inf")
) -> Float[Array, "b h w c"]:
    """Keeps predicted images in [-1, 1]; what is infinite there becomes NaN, and is not hidden.

    Args:
        x0: predicted images.
        percentile: 100 clips (static thresholding); less divides each image by that percentile of
            its absolute values, where that exceeds 1 (dynamic thresholding).
        maximum: the most that is divided by (IF: 1.5 at 64 px, 1 above).
    """
    x0 = jnp.where(jnp.isinf(x0), jnp.nan, x0)
    if percentile < 100.0:
        limit = percentile_of_rows(jnp.abs(x0).reshape(len(x0), -1), percentile)
        limit = jnp.clip(limit, 1.0, maximum)[:, None, None, None]
        return jnp.clip(x0, -limit, limit) / limit
    return jnp.clip(x0, -1.0, 1.0)


def percentile_of_rows(rows: Float[Array, "b n"], percentile: float) -> Float[Array, " b"]:
    """What `jnp.percentile(rows, percentile, axis=1)` is, bit for bit, without a sort.

    Sorting an image at every step takes a CPU 13 to 26 times as long, and for a tail of thousands
    a TPU has no top-k but a sort: `python -m tests.benchmarks.threshold`.

    Args:
        rows: float32, none of it negative; a row with a NaN gives NaN.
        percentile: from 0 to 100, linearly interpolated.
    """
    last = rows.shape[1] - 1
    # In float32, as JAX has it.
    position = np.float32(percentile) / np.float32(100) * np.float32(last)
    rank = min(int(position), last)
    bits = jax.lax.bitcast_convert_type(rows, jnp.int32)

    def add_bit(index: Array, low: Array) -> Array:
        candidate = low + (1 << (30 - index))
        below = (bits < candidate[:, None]).sum(axis=1)
        return jnp.where(below <= rank, candidate, low)

    # Such floats are in the order of their bits: the number of this rank is the greatest below
    # which there are no more than it counts, found bit by bit.
    low = jax.lax.fori_loop(0, 31, add_bit, jnp.zeros(len(rows), jnp.int32))
    weight = position - np.floor(position)
    high = low
    if weight:
        above = jnp.where(bits > low[:, None], bits, jnp.iinfo(jnp.int32).max).min(axis=1)
        high = jnp.where((bits <= low[:, None]).sum(axis=1) > rank + 1, low, above)
    low, high = (jax.lax.bitcast_convert_type(number, jnp.float32) for number in (low, high))
    value = low * (1 - weight) + high * weight
    return jnp.where(jnp.isnan(rows).any(axis=1), jnp.nan, value)
