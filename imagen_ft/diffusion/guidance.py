"""Classifier-free guidance and thresholding (Imagen, section 2.2 and 2.3), and what came since."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from launch.runtime.types import Array

# How the weight goes with time, see `weight_at`.
WEIGHT_SCHEDULES = ("constant", "linear", "cosine")


def guide(
    output: Float[Array, "b h w c"],
    other: Float[Array, "b h w d"],
    weight: float | Float[Array, ""],
    channels: int,
    rescale: float = 0.0,
) -> Float[Array, "b h w c"]:
    """Guided output: w output + (1 - w) other, which leads away from the other.

    That is the network's for no text (Imagen, Eq. 2), or that of a weaker network for the same text
    (autoguidance: Karras et al. 2024, Eq. 3). Imagen writes it for eps. For x_0 and v it is the
    same: each is an affine function of eps, and the weights add up to 1.

    Args:
        output: of the network, for the prompts.
        other: what to lead away from.
        weight: w of Imagen; 1 is no guidance.
        channels: how many of the output's channels are eps, x_0 or v; what is behind them
            (DeepFloyd IF's variance) is that of the prompts.
        rescale: see `rescaled`.

    Returns:
        The output for the prompts, its first channels guided.
    """
    plain = output[..., :channels]
    guided = weight * plain + (1.0 - weight) * other[..., :channels]
    if rescale:
        guided = rescaled(guided, plain, rescale)
    return jnp.concatenate([guided, output[..., channels:]], axis=-1)


def rescaled(
    guided: Float[Array, "b h w c"], plain: Float[Array, "b h w c"], share: float
) -> Float[Array, "b h w c"]:
    """Takes back what guidance adds to the contrast (Lin et al. 2024, Eq. 15 and 16).

    share g std(p) / std(g) + (1 - share) g, with the deviations of each image's own values.

    Args:
        guided: g.
        plain: p, the output without guidance.
        share: phi of the paper, in [0, 1]; 0 changes nothing.
    """
    axes = (1, 2, 3)
    spread = jnp.std(guided, axis=axes, keepdims=True)
    ratio = jnp.std(plain, axis=axes, keepdims=True) / jnp.where(spread > 0, spread, 1.0)
    return share * ratio * guided + (1.0 - share) * guided


def weight_at(
    schedule: str, weight: float | Float[Array, ""], t: Float[Array, ""]
) -> float | Float[Array, ""]:
    """The guidance weight of a time: 1 + (w - 1) f(t), where f is 1 on average.

    Args:
        schedule: one of `WEIGHT_SCHEDULES`: f is 1, 2 (1 - t) or 1 + cos(pi t), the two that grow
            towards data in Wang et al. 2024, section 4.
        weight: w.
        t: in [0, 1]; 1 is noise.
    """
    if schedule == "constant":
        return weight
    factor = 2.0 * (1.0 - t) if schedule == "linear" else 1.0 + jnp.cos(math.pi * t)
    return 1.0 + (weight - 1.0) * factor


def anneal(
    text: Float[Array, "b n d"],
    noise: Float[Array, "b n d"],
    t: Float[Array, ""],
    scale: float,
    interval: tuple[float, float],
    mix: float,
) -> Float[Array, "b n d"]:
    """Texts with noise that goes as the images come: CADS (Sadat et al. 2024, section 4).

    y' = sqrt(g) y + s sqrt(1 - g) n, where g is 1 up to the first end of the interval, 0 from the
    last on, and a line between them; y'' = mean(y) + std(y) (y' - mean(y')) / std(y') of each text.

    Args:
        text: y, states of the prompts.
        noise: n, standard normal.
        t: in [0, 1]; 1 is noise.
        scale: s.
        interval: tau_1 and tau_2.
        mix: psi: how much of the result is y'', the rest is y'.
    """
    axes, dtype = (1, 2), text.dtype
    text = text.astype(jnp.float32)
    first, last = interval
    share = jnp.clip((last - t) / (last - first), 0.0, 1.0)
    noised = jnp.sqrt(share) * text + scale * jnp.sqrt(1.0 - share) * noise
    mean, deviation = (f(text, axis=axes, keepdims=True) for f in (jnp.mean, jnp.std))
    off = noised - jnp.mean(noised, axis=axes, keepdims=True)
    spread = jnp.std(noised, axis=axes, keepdims=True)
    rescaled_text = mean + deviation * off / jnp.where(spread > 0, spread, 1.0)
    annealed = mix * rescaled_text + (1.0 - mix) * noised
    return jnp.where(share < 1.0, annealed, text).astype(dtype)


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
