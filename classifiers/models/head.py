"""The end of convolutional networks: the mean over pixels, dropout, one layer."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from classifiers.models.dropout import dropout
from launch.runtime.layers.layers import Dense
from launch.runtime.types import Array


def pooled_head(
    model: nn.Module, x: Float[Array, "b h w d"], train: bool, features: bool
) -> Float[Array, "b classes"]:
    """Logits in float32; sows `spatial` and `features` as intermediates of the calling `model`.

    `model` has `num_classes` and the rate `dropout`. `features` returns what the head sees, [b, d].
    """
    model.sow("intermediates", "spatial", x)
    # The sum over pixels would lose digits in bfloat16.
    x = x.mean(axis=(1, 2), dtype=jnp.float32)
    model.sow("intermediates", "features", x)
    if features:
        return x
    x = dropout(x, model.dropout, train)
    init = nn.initializers.normal(0.01)
    return Dense(model.num_classes, kernel_init=init, name="head")(x)
