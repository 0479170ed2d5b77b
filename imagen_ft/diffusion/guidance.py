"""Classifier-free guidance and thresholding (Imagen, section 2.2 and 2.3)."""

import jax.numpy as jnp
from jaxtyping import Float

from launch.runtime.types import Array


def guide(
    output: Float[Array, "two_b h w c"], weight: float, channels: int
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
    """Keeps predicted images in [-1, 1].

    Args:
        x0: predicted images.
        percentile: 100 clips (static thresholding); less divides each image by that percentile of
            its absolute values, where that exceeds 1 (dynamic thresholding).
        maximum: the most that is divided by (IF: 1.5 at 64 px, 1 above).
    """
    if percentile < 100.0:
        limit = jnp.percentile(jnp.abs(x0), percentile, axis=(1, 2, 3), keepdims=True)
        limit = jnp.clip(limit, 1.0, maximum)
        return jnp.clip(x0, -limit, limit) / limit
    return jnp.clip(x0, -1.0, 1.0)
