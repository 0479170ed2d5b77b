"""Classifier-free guidance and thresholding (Imagen, sections 2.2 and 2.3), and later methods."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from launch.runtime.types import Array

# How the weight changes over time, see `weight_at`.
WEIGHT_SCHEDULES = ("constant", "linear", "cosine")


def guide(
    output: Float[Array, "b h w c"],
    other: Float[Array, "b h w d"],
    weight: float | Float[Array, ""],
    channels: int,
    rescale: float = 0.0,
) -> Float[Array, "b h w c"]:
    """Leads away from `other`: w output + (1 - w) other, in the first `channels`.

    w = 1 is no guidance. `other` is the output without text (Imagen, Eq. 2), or a weaker network's
    for the same text (autoguidance: Karras et al. 2024, Eq. 3). Later channels (DeepFloyd IF's
    variance) stay as they are in `output`. For `rescale` see `rescaled`.
    """
    # Imagen writes it for eps. It holds for x_0 and v too: each is affine in eps, and the weights
    # sum to 1.
    plain = output[..., :channels]
    guided = weight * plain + (1.0 - weight) * other[..., :channels]
    if rescale:
        guided = rescaled(guided, plain, rescale)
    return jnp.concatenate([guided, output[..., channels:]], axis=-1)


def rescaled(
    guided: Float[Array, "b h w c"], plain: Float[Array, "b h w c"], share: float
) -> Float[Array, "b h w c"]:
    """Undoes guidance's gain in contrast (Lin et al. 2024, Eq. 15 and 16); share is phi."""
    axes = (1, 2, 3)
    # [b, 1, 1, 1]; a constant image has no contrast to scale.
    spread = jnp.std(guided, axis=axes, keepdims=True)
    ratio = jnp.std(plain, axis=axes, keepdims=True) / jnp.where(spread > 0, spread, 1.0)
    # phi g std(p) / std(g) + (1 - phi) g, with each image's own deviations.
    return share * ratio * guided + (1.0 - share) * guided


def weight_at(
    schedule: str, weight: float | Float[Array, ""], t: Float[Array, ""]
) -> float | Float[Array, ""]:
    """1 + (w - 1) f(t), where f averages 1 over t in [0, 1]; t = 1 is noise."""
    if schedule == "constant":
        return weight
    # f = 2 (1 - t) or 1 + cos(pi t): the two that grow towards data in Wang et al. 2024, section 4.
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
    """Text states with noise that fades as the image forms: CADS (Sadat et al. 2024, section 4)."""
    # In the paper's letters: noise n, scale s, interval (tau_1, tau_2), mix psi.
    axes, dtype = (1, 2), text.dtype
    text = text.astype(jnp.float32)
    first, last = interval
    # gamma(t): 1 up to tau_1, 0 from tau_2 on, linear between. t = 1 is noise.
    share = jnp.clip((last - t) / (last - first), 0.0, 1.0)
    # y' = sqrt(gamma) y + s sqrt(1 - gamma) n.
    noised = jnp.sqrt(share) * text + scale * jnp.sqrt(1.0 - share) * noise
    # y'' = mean(y) + std(y) (y' - mean(y')) / std(y'), over each text: [b, 1, 1].
    mean, deviation = (f(text, axis=axes, keepdims=True) for f in (jnp.mean, jnp.std))
    off = noised - jnp.mean(noised, axis=axes, keepdims=True)
    spread = jnp.std(noised, axis=axes, keepdims=True)
    rescaled_text = mean + deviation * off / jnp.where(spread > 0, spread, 1.0)
    # psi y'' + (1 - psi) y'. At gamma = 1 the text itself, without rounding.
    annealed = mix * rescaled_text + (1.0 - mix) * noised
    return jnp.where(share < 1.0, annealed, text).astype(dtype)


def threshold(
    x0: Float[Array, "b h w c"], percentile: float, maximum: float = float("inf")
) -> Float[Array, "b h w c"]:
    """Keeps predicted images in [-1, 1].

    Percentile 100 clips (static thresholding). Less divides each image by that percentile s of its
    absolute values where s > 1, and by at most `maximum` (dynamic thresholding, Imagen, section
    2.3; IF: 1.5 at 64 px, 1 above). Infinite values become NaN.
    """
    # Clipping would turn infinity into a plausible 1: NaN lets the overflow be seen.
    x0 = jnp.where(jnp.isinf(x0), jnp.nan, x0)
    if percentile < 100.0:
        limit = percentile_of_rows(jnp.abs(x0).reshape(len(x0), -1), percentile)
        # [b, 1, 1, 1]
        limit = jnp.clip(limit, 1.0, maximum)[:, None, None, None]
        return jnp.clip(x0, -limit, limit) / limit
    return jnp.clip(x0, -1.0, 1.0)


def percentile_of_rows(rows: Float[Array, "b n"], percentile: float) -> Float[Array, " b"]:
    """Equals `jnp.percentile(rows, percentile, axis=1)` bit for bit, without a sort.

    `rows` are float32 and not negative; a row with a NaN gives NaN.
    """
    # Sorting each image at every step takes a CPU 13 to 26 times as long, and a TPU has no top-k
    # for tails of thousands, only a sort: `python -m tests.benchmarks.threshold`.
    last = rows.shape[1] - 1
    # The rank, in float32 as JAX computes it.
    position = np.float32(percentile) / np.float32(100) * np.float32(last)
    rank = min(int(position), last)
    bits = jax.lax.bitcast_convert_type(rows, jnp.int32)

    def add_bit(index: Array, low: Array) -> Array:
        candidate = low + (1 << (30 - index))
        below = (bits < candidate[:, None]).sum(axis=1)
        return jnp.where(below <= rank, candidate, low)

    # Bits of non-negative floats sort as the floats do. The number of this rank is the largest with
    # at most `rank` numbers below it, found bit by bit from the highest.
    low = jax.lax.fori_loop(0, 31, add_bit, jnp.zeros(len(rows), jnp.int32))
    # Linear interpolation with the next number in order, which may be an equal one.
    weight = position - np.floor(position)
    high = low
    if weight:
        above = jnp.where(bits > low[:, None], bits, jnp.iinfo(jnp.int32).max).min(axis=1)
        high = jnp.where((bits <= low[:, None]).sum(axis=1) > rank + 1, low, above)
    low, high = (jax.lax.bitcast_convert_type(number, jnp.float32) for number in (low, high))
    value = low * (1 - weight) + high * weight
    return jnp.where(jnp.isnan(rows).any(axis=1), jnp.nan, value)
