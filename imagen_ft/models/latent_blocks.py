"""Blocks of the latent U-Net and the auto-encoder, named as in the public checkpoints."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from imagen_ft.models.blocks import GroupNorm, upsample_nearest
from launch.runtime.devices.mesh import split_batch
from launch.runtime.layers.layers import Conv, Dense
from launch.runtime.types import Array

Dtype = Any


class LatentResnet(nn.Module):
    """Residual block to `width` channels that adds an embedding, in the U-Net, between its halves.

    The auto-encoder's blocks take no embedding.
    """

    width: int
    num_groups: int
    epsilon: float
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], embedding: Float[Array, "b d"] | None = None
    ) -> Float[Array, "b h w width"]:
        conv = lambda name: Conv(self.width, (3, 3), dtype=self.dtype, name=name)  # noqa: E731
        norm = lambda name: GroupNorm(self.num_groups, self.dtype, self.epsilon, name=name)  # noqa: E731
        h = conv("conv1")(nn.silu(norm("norm1")(x)))
        if embedding is not None:
            dense = Dense(self.width, dtype=self.dtype, name="time_emb_proj")
            h = h + dense(nn.silu(embedding))[:, None, None]  # [b, 1, 1, width]
        h = conv("conv2")(nn.silu(norm("norm2")(h)))
        if x.shape[-1] != self.width:
            x = Conv(self.width, (1, 1), dtype=self.dtype, name="conv_shortcut")(x)
        return split_batch(x + h)


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2."""

    # Zeros before and after each spatial axis. JAX's "SAME" would choose (0, 1) for an even size:
    # right for the auto-encoder, wrong for the U-Net's (1, 1).
    padding: tuple[int, int]
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h/2 w/2 c"]:
        options = dict(strides=(2, 2), padding=(self.padding,) * 2, dtype=self.dtype)
        return Conv(x.shape[-1], (3, 3), name="conv", **options)(x)


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a 3x3 convolution."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
        return Conv(x.shape[-1], (3, 3), dtype=self.dtype, name="conv")(upsample_nearest(x))
