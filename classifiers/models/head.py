"""How convolutional networks end: the mean over pixels, dropout, one layer."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from classifiers.models.dropout import dropout
from launch.runtime.layers.layers import Dense
from launch.runtime.types import Array


def pooled_head(
    model: nn.Module, x: Float[Array, "b h w d"], train: bool, features: bool
) -> Float[Array, "b classes"]:
    """Logits in float32; `spatial` and `features` become the model's intermediates.

    Args:
        model: in its call; says `num_classes`, and the rate of `dropout` of what the head sees.
        x: what the last block gives.
        train: drop.
        features: return what the head sees instead, [b, d].
    """
    model.sow("intermediates", "spatial", x)
    x = x.mean(axis=(1, 2), dtype=jnp.float32)
    model.sow("intermediates", "features", x)
    if features:
        return x
    x = dropout(x, model.dropout, train)
    init = nn.initializers.normal(0.01)
    return Dense(model.num_classes, kernel_init=init, name="head")(x)
