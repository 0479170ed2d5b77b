"""Blocks of the pixel U-Nets. Module and parameter names mirror the public checkpoints."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Dtype = Any


def timestep_embedding(t: Float[Array, " b"], width: int) -> Float[Array, "b width"]:
    """Sinusoids of `t`, cosines first, periods up to 10,000 (Ho et al. 2020)."""
    half = width // 2
    frequencies = jnp.exp(-jnp.log(10_000.0) * jnp.arange(half) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def gelu(x: Array) -> Array:
    """The exact gelu."""
    return jax.nn.gelu(x, approximate=False)


class GroupNorm(nn.Module):
    """Group norm over all axes but the first, statistics in float32."""

    num_groups: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *space c"]) -> Float[Array, "b *space c"]:
        norm = nn.GroupNorm(
            self.num_groups, epsilon=1e-5, use_fast_variance=False, dtype=jnp.float32, name="norm"
        )
        nn.share_scope(self, norm)
        return norm(x.astype(jnp.float32)).astype(self.dtype)


class TimestepEmbedding(nn.Module):
    """Two-layer network on a sinusoid; for the time and for the noise level of the condition."""

    width: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b d"]) -> Float[Array, "b width"]:
        x = nn.Dense(self.width, dtype=self.dtype, name="linear_1")(x)
        return nn.Dense(self.width, dtype=self.dtype, name="linear_2")(gelu(x))


class AttentionPooling(nn.Module):
    """Pools tokens by attention from one class token: the mean plus a learned vector."""

    num_heads: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, text: Float[Array, "b n d"]) -> Float[Array, "b d"]:
        width = text.shape[-1]
        position = self.param(
            "positional_embedding", nn.initializers.normal(width**-0.5), (1, width)
        )
        token = text.mean(axis=1, keepdims=True) + position[None].astype(text.dtype)
        tokens = jnp.concatenate([token, text], axis=1)

        def project(name: str, x: Array) -> Array:
            x = nn.Dense(width, dtype=self.dtype, name=name)(x)
            return x.reshape(*x.shape[:2], self.num_heads, -1)  # [b, n, heads, d / heads]

        query, key, value = (
            project("q_proj", token),
            project("k_proj", tokens),
            project("v_proj", tokens),
        )
        return jax.nn.dot_product_attention(query, key, value).reshape(-1, width)


class TextTimeEmbedding(nn.Module):
    """The pooled text that is added to the time embedding."""

    width: int
    num_heads: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, text: Float[Array, "b n d"]) -> Float[Array, "b width"]:
        x = nn.LayerNorm(1e-5, dtype=jnp.float32, name="norm1")(text).astype(self.dtype)
        x = AttentionPooling(self.num_heads, self.dtype, name="pool")(x)
        x = nn.Dense(self.width, dtype=self.dtype, name="proj")(x)
        return nn.LayerNorm(1e-5, dtype=jnp.float32, name="norm2")(x).astype(self.dtype)


class ResnetBlock(nn.Module):
    """BigGAN-style residual block with scale-shift, optionally resampling inside.

    Attributes:
        width: output channels.
        num_groups: of both norms.
        resample: '', 'down' (2x2 average pool) or 'up' (nearest, x2), on the branch and the skip.
        skip_time_act: the embedding has been activated by the caller.
        out_scale: the output is divided by it.
    """

    width: int
    num_groups: int
    resample: str = ""
    skip_time_act: bool = False
    out_scale: float = 1.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], embedding: Float[Array, "b d"]
    ) -> Float[Array, "b h2 w2 width"]:
        conv = lambda name, **kw: nn.Conv(self.width, (3, 3), dtype=self.dtype, name=name, **kw)  # noqa: E731
        h = gelu(GroupNorm(self.num_groups, self.dtype, name="norm1")(x))
        if self.resample:
            resample = average_pool if self.resample == "down" else upsample_nearest
            x, h = resample(x), resample(h)
        h = conv("conv1")(h)
        embedding = embedding if self.skip_time_act else gelu(embedding)
        modulation = nn.Dense(2 * self.width, dtype=self.dtype, name="time_emb_proj")(embedding)
        scale, shift = jnp.split(modulation[:, None, None], 2, axis=-1)
        h = GroupNorm(self.num_groups, self.dtype, name="norm2")(h) * (1 + scale) + shift
        h = conv("conv2")(gelu(h))
        if x.shape[-1] != self.width:
            x = nn.Conv(self.width, (1, 1), dtype=self.dtype, name="conv_shortcut")(x)
        return (x + h) / self.out_scale


class AddedKVAttention(nn.Module):
    """Self-attention whose keys and values begin with those of the text.

    Attributes:
        head_dim: channels a head.
        num_groups: of the norm of the image.
        norm_cross_groups: of the norm of the text.
    """

    head_dim: int
    num_groups: int
    norm_cross_groups: int = 32
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], text: Float[Array, "b n d"]
    ) -> Float[Array, "b h w c"]:
        width = x.shape[-1]
        tokens = x.reshape(x.shape[0], -1, width)  # [b, h * w, c]
        normed = GroupNorm(self.num_groups, self.dtype, name="group_norm")(tokens)
        text = GroupNorm(self.norm_cross_groups, self.dtype, name="norm_cross")(text)

        def project(name: str, y: Array) -> Array:
            y = nn.Dense(width, dtype=self.dtype, name=name)(y)
            return y.reshape(*y.shape[:2], -1, self.head_dim)  # [b, n, heads, head_dim]

        key = jnp.concatenate([project("add_k_proj", text), project("to_k", normed)], axis=1)
        value = jnp.concatenate([project("add_v_proj", text), project("to_v", normed)], axis=1)
        out = jax.nn.dot_product_attention(project("to_q", normed), key, value)
        out = nn.Dense(width, dtype=self.dtype, name="to_out_0")(out.reshape(tokens.shape))
        return x + out.reshape(x.shape)


def average_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h/2 w/2 c"]:
    """2x2 means."""
    return nn.avg_pool(x, (2, 2), (2, 2))


def upsample_nearest(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    """Every pixel becomes 2x2."""
    return x.repeat(2, axis=1).repeat(2, axis=2)
