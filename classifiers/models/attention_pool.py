"""Pooling by attention: from a learned probe (SigLIP), or from the mean pixel (CLIP's ResNets)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from launch.runtime.layers.layers import Dense, activation, attend_plainly
from launch.runtime.types import Array

_INIT = nn.initializers.truncated_normal(0.02)


class ProbePool(nn.Module):
    """A learned query attends to all tokens, then an MLP (Zhai et al. 2022, section 2.1)."""

    num_heads: int
    mlp_dim: int
    norm_eps: float
    activation: str
    dtype: Any  # of matrix products

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b d"]:
        width = x.shape[-1]
        probe = self.param("probe", _INIT, (1, 1, width))
        query = jnp.broadcast_to(probe, (len(x), 1, width))  # [b, 1, d]
        out = _attend(query, x, self.num_heads, width, self.dtype)
        # E[x^2] - E[x]^2, Flax's faster variance, would lose digits.
        norm = nn.LayerNorm(self.norm_eps, use_fast_variance=False, name="norm")
        hidden = Dense(self.mlp_dim, dtype=self.dtype, name="mlp_1")(norm(out))
        hidden = Dense(width, dtype=self.dtype, name="mlp_2")(activation(self.activation)(hidden))
        return (out + hidden)[:, 0].astype(jnp.float32)


class MeanPixelPool(nn.Module):
    """The mean of all pixels attends to them and to itself (Radford et al. 2021, section 2.4)."""

    num_heads: int
    out_width: int
    dtype: Any  # of matrix products

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b out"]:
        width = x.shape[-1]
        pixels = x.reshape(len(x), -1, width).astype(jnp.float32)  # [b, h * w, d]
        # [b, 1 + h * w, d], the mean first; positions are of a fixed size, so images are too.
        tokens = jnp.concatenate([pixels.mean(1, keepdims=True), pixels], axis=1)
        init = nn.initializers.normal(width**-0.5)
        tokens = tokens + self.param("positions", init, tokens.shape[1:])[None]
        out = _attend(tokens[:, :1], tokens, self.num_heads, self.out_width, self.dtype)
        return out[:, 0].astype(jnp.float32)


def _attend(query: Array, tokens: Array, num_heads: int, out_width: int, dtype: Any) -> Array:
    # Layers that are made here become parameters of the calling module.
    width = tokens.shape[-1]

    def project(x: Array, name: str) -> Array:
        # [b, n, heads, d / heads]
        return Dense(width, dtype=dtype, name=name)(x).reshape(*x.shape[:2], num_heads, -1)

    out = attend_plainly(project(query, "query"), project(tokens, "key"), project(tokens, "value"))
    return Dense(out_width, dtype=dtype, name="out")(out.reshape(*query.shape[:2], width))
