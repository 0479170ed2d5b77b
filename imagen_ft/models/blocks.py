"""Blocks of the pixel U-Nets. Module and parameter names mirror the public checkpoints."""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from launch.runtime.devices.mesh import split_batch
from launch.runtime.layers.layers import Conv, Dense, attend, gelu
from launch.runtime.types import Array

Dtype = Any
KeysValues = tuple[Float[Array, "b tokens heads channels"], Float[Array, "b tokens heads channels"]]


def timestep_embedding(t: Float[Array, " b"], width: int) -> Float[Array, "b width"]:
    """Sinusoids of `t`, cosines first (Vaswani et al. 2017, section 3.5; Ho et al. 2020)."""
    # Angular frequencies fall geometrically from 1 to almost 1 / 10,000.
    half = width // 2
    # The exponents are rounded to float32 as in the code that trained the checkpoints: at t = 999
    # one unit in the last place of a frequency moves the sinusoid by 1e-4.
    exponents = np.float32(-math.log(10_000.0)) * np.arange(half, dtype=np.float32)
    frequencies = np.exp(np.float64(exponents / np.float32(half))).astype(np.float32)
    angles = t.astype(jnp.float32)[:, None] * frequencies[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class GroupNorm(nn.Module):
    """Group norm over all axes but the first, with float32 statistics (Wu & He 2018)."""

    num_groups: int
    dtype: Dtype = jnp.float32
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "b *space c"]) -> Float[Array, "b *space c"]:
        width = x.shape[-1]
        if width % self.num_groups:
            raise ValueError(f"num_groups must divide {width} channels, got {self.num_groups}")
        scale = self.param("scale", nn.initializers.ones, (width,))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        flat = x.reshape(x.shape[0], -1, width).astype(jnp.float32)  # [b, space, c]
        # Means over space first, channel by channel, then over the group: the long sums run along
        # the memory layout. Two passes, since E[x^2] - E[x]^2 cancels for large means.
        centred = flat - self._group_means(flat.mean(1))
        variance = self._group_means(jnp.square(centred).mean(1))
        normed = centred * (jax.lax.rsqrt(variance + self.epsilon) * scale[None, None])
        return (normed + bias[None, None]).astype(self.dtype).reshape(x.shape)

    def _group_means(self, x: Float[Array, "b c"]) -> Float[Array, "b 1 c"]:
        groups = x.reshape(x.shape[0], self.num_groups, -1)  # [b, groups, c / groups]
        means = jnp.broadcast_to(groups.mean(2, keepdims=True), groups.shape)
        return means.reshape(x.shape[0], 1, -1)


class TimestepEmbedding(nn.Module):
    """Two-layer network on the sinusoids of time, noise level or sizes."""

    width: int
    dtype: Dtype = jnp.float32
    activation: Callable[[Array], Array] = gelu

    @nn.compact
    def __call__(self, x: Float[Array, "b d"]) -> Float[Array, "b width"]:
        x = Dense(self.width, dtype=self.dtype, name="linear_1")(x)
        return Dense(self.width, dtype=self.dtype, name="linear_2")(self.activation(x))


class AttentionPooling(nn.Module):
    """Pools tokens by attention from one query: their mean plus a learned vector."""

    num_heads: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, text: Float[Array, "b n d"]) -> Float[Array, "b d"]:
        width = text.shape[-1]
        position = self.param(
            "positional_embedding", nn.initializers.normal(width**-0.5), (1, width)
        )
        # As in the public code, padding counts in the mean and is attended to.
        token = text.mean(axis=1, keepdims=True) + position[None].astype(text.dtype)
        tokens = split_batch(jnp.concatenate([token, text], axis=1))

        def project(name: str, x: Array) -> Array:
            x = Dense(width, dtype=self.dtype, name=name)(x)
            return x.reshape(*x.shape[:2], self.num_heads, -1)  # [b, n, heads, d / heads]

        query, key, value = (
            project("q_proj", token),
            project("k_proj", tokens),
            project("v_proj", tokens),
        )
        return attend(query, key, value).reshape(-1, width)


class TextTimeEmbedding(nn.Module):
    """The pooled text that is added to the time embedding."""

    width: int
    num_heads: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, text: Float[Array, "b n d"]) -> Float[Array, "b width"]:
        x = nn.LayerNorm(1e-5, dtype=jnp.float32, name="norm1")(text).astype(self.dtype)
        x = AttentionPooling(self.num_heads, self.dtype, name="pool")(x)
        x = Dense(self.width, dtype=self.dtype, name="proj")(x)
        return nn.LayerNorm(1e-5, dtype=jnp.float32, name="norm2")(x).astype(self.dtype)


class ResnetBlock(nn.Module):
    """BigGAN-style residual block with scale-shift norm (Dhariwal & Nichol 2021)."""

    width: int
    num_groups: int
    # '', 'down' (2x2 average pool) or 'up' (nearest, x2), on both the branch and the skip.
    resample: str = ""
    skip_time_act: bool = False  # True: the caller has activated the embedding
    out_scale: float = 1.0  # divides the output
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], embedding: Float[Array, "b d"]
    ) -> Float[Array, "b h2 w2 width"]:
        conv = lambda name, **kw: Conv(self.width, (3, 3), dtype=self.dtype, name=name, **kw)  # noqa: E731
        # 1. Norm, resample, convolve.
        h = gelu(GroupNorm(self.num_groups, self.dtype, name="norm1")(x))
        if self.resample:
            resample = average_pool if self.resample == "down" else upsample_nearest
            x, h = resample(x), resample(h)
        h = conv("conv1")(h)
        # 2. Scale and shift by the embedding; 1 + scale, so that 0 changes nothing.
        embedding = embedding if self.skip_time_act else gelu(embedding)
        modulation = Dense(2 * self.width, dtype=self.dtype, name="time_emb_proj")(embedding)
        scale, shift = jnp.split(modulation[:, None, None], 2, axis=-1)  # each [b, 1, 1, width]
        h = GroupNorm(self.num_groups, self.dtype, name="norm2")(h) * (1 + scale) + shift
        h = conv("conv2")(gelu(h))
        # 3. Add the skip, projected where the width changes.
        if x.shape[-1] != self.width:
            x = Conv(self.width, (1, 1), dtype=self.dtype, name="conv_shortcut")(x)
        return split_batch((x + h) / self.out_scale)


class AddedKVAttention(nn.Module):
    """Self-attention over the pixels with the text's keys and values in front of theirs."""

    width: int
    head_dim: int  # channels a head
    num_groups: int  # of the image's norm
    cross_num_groups: int = 32  # of the text's norm
    dtype: Dtype = jnp.float32

    def setup(self):
        dense = functools.partial(Dense, self.width, dtype=self.dtype)
        self.group_norm = GroupNorm(self.num_groups, self.dtype)
        self.norm_cross = GroupNorm(self.cross_num_groups, self.dtype)
        self.to_q, self.to_k, self.to_v = dense(), dense(), dense()
        self.add_k_proj, self.add_v_proj = dense(), dense()
        self.to_out_0 = dense()

    def context(self, text: Float[Array, "b n d"]) -> KeysValues:
        """The text's keys and values."""
        text = self.norm_cross(text)
        return self._heads(self.add_k_proj(text)), self._heads(self.add_v_proj(text))

    def __call__(self, x: Float[Array, "b h w c"], text: KeysValues) -> Float[Array, "b h w c"]:
        tokens = self.group_norm(x.reshape(x.shape[0], -1, self.width))  # [b, h * w, c]
        key = jnp.concatenate([text[0], self._heads(self.to_k(tokens))], axis=1)
        value = jnp.concatenate([text[1], self._heads(self.to_v(tokens))], axis=1)
        out = attend(self._heads(self.to_q(tokens)), key, value)
        return split_batch(x + self.to_out_0(out.reshape(tokens.shape)).reshape(x.shape))

    def _heads(self, x: Float[Array, "b n c"]) -> Float[Array, "b n heads head_dim"]:
        return x.reshape(*x.shape[:2], -1, self.head_dim)


def average_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h/2 w/2 c"]:
    """2x2 means."""
    return nn.avg_pool(x, (2, 2), (2, 2))


def upsample_nearest(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    """Every pixel becomes 2x2."""
    return x.repeat(2, axis=1).repeat(2, axis=2)
