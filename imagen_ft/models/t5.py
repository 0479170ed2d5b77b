"""The encoder of T5 v1.1 (Raffel et al. 2020; Shazeer 2020 for the gated GELU)."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from launch.runtime.layers.layers import Dense, attend_plainly
from launch.runtime.types import Array


class T5Encoder(nn.Module):
    """Encodes tokens. Module and parameter names mirror the public checkpoints."""

    vocab_size: int
    d_model: int  # channels of the states
    d_kv: int  # channels a head
    d_ff: int  # channels of the feed-forward layer
    num_layers: int
    num_heads: int
    num_buckets: int = 32  # of the relative positions, half of them for each direction
    max_distance: int = 128  # tokens; positions further apart share the last bucket
    # Of the matrix products. The residual stream, norms and softmax stay float32: T5's activations
    # grow so large that bfloat16 resolves them only to hundreds and float16 overflows. With float16
    # whatever is added to the stream is float32 too (transformers keeps `wo` in float32).
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "b n"], mask: Bool[Array, "b n"]
    ) -> Float[Array, "b n d"]:
        """Float32 states of every position, padding included; `mask` is True where a token is."""
        embedding = nn.Embed(
            self.vocab_size,
            self.d_model,
            embedding_init=nn.initializers.normal(1.0),
            name="shared",
        )
        x = embedding(tokens).astype(jnp.float32)
        # One table of relative positions serves all blocks.
        bias = RelativePositionBias(
            self.num_heads, self.num_buckets, self.max_distance, name="relative_attention_bias"
        )(tokens.shape[1])
        for layer in range(self.num_layers):
            x = T5Block(
                self.d_model,
                self.d_kv,
                self.d_ff,
                self.num_heads,
                self.dtype,
                name=f"block_{layer}",
            )(x, bias, mask)
        return RMSNorm(name="final_layer_norm")(x)


class T5Block(nn.Module):
    """Self-attention, then a gated feed-forward layer, both residual with the norm first."""

    d_model: int
    d_kv: int
    d_ff: int
    num_heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], bias: Float[Array, "1 h n n"], mask: Bool[Array, "b n"]
    ) -> Float[Array, "b n d"]:
        # Layers that write to the residual stream need its range, which float16 lacks.
        outward = jnp.float32 if jnp.dtype(self.dtype) == jnp.float16 else self.dtype

        def dense(name: str, width: int, fan: float, dtype: Any = self.dtype) -> nn.Dense:
            init = nn.initializers.normal(fan**-0.5)
            return Dense(width, use_bias=False, kernel_init=init, dtype=dtype, name=name)

        inner = self.num_heads * self.d_kv

        def project(name: str, fan: float) -> Array:
            y = dense(name, inner, fan)(normed)
            return y.reshape(*y.shape[:2], self.num_heads, self.d_kv)  # [b, n, heads, d_kv]

        # 1. Self-attention.
        normed = RMSNorm(name="layer_0_layer_norm")(x).astype(self.dtype)
        query, key, value = (
            project("SelfAttention_q", self.d_model * self.d_kv),
            project("SelfAttention_k", self.d_model),
            project("SelfAttention_v", self.d_model),
        )
        # T5 does not divide its logits by sqrt(d_kv): the initial weights of q do.
        out = attend_plainly(query, key, value, bias, mask[:, None, None, :], scale=1.0)
        out = out.reshape(*x.shape[:2], inner)  # [b, n, heads * d_kv]
        x = x + dense("SelfAttention_o", self.d_model, inner, outward)(out)
        # 2. GEGLU feed-forward layer (Shazeer 2020, section 2).
        normed = RMSNorm(name="layer_1_layer_norm")(x).astype(self.dtype)
        gate = jax.nn.gelu(dense("wi_0", self.d_ff, self.d_model)(normed), approximate=True)
        linear = dense("wi_1", self.d_ff, self.d_model)(normed)
        hidden = gate.astype(outward) * linear.astype(outward)
        return x + dense("wo", self.d_model, self.d_ff, outward)(hidden)


class RMSNorm(nn.Module):
    """T5's layer norm, in float32: no mean, no bias (Zhang & Sennrich 2019)."""

    @nn.compact
    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        scale = self.param("weight", nn.initializers.ones, (x.shape[-1],))
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
        return x * scale.reshape((1,) * (x.ndim - 1) + (-1,))


class RelativePositionBias(nn.Module):
    """One learned bias for each head and bucket of (key position - query position).

    Source: Raffel et al. 2020, section 2.1.
    """

    num_heads: int
    num_buckets: int
    max_distance: int

    @nn.compact
    def __call__(self, length: int) -> Float[Array, "1 h n n"]:
        table = nn.Embed(self.num_buckets, self.num_heads, name="embedding")
        # NumPy, at trace time: see `_bucket` about a device's logarithm.
        position = np.arange(length)
        buckets = self._bucket(position[None, :] - position[:, None])
        return table(buckets).astype(jnp.float32).transpose(2, 0, 1)[None]  # [1, heads, n, n]

    def _bucket(self, relative: Int[np.ndarray, "n n"]) -> Int[np.ndarray, "n n"]:
        # Half of the buckets for each sign. Of these, half hold one distance each, and the other
        # half grow logarithmically up to max_distance. Some distances fall exactly between two
        # buckets, where the logarithm of an accelerator may round to the wrong one.
        half, exact = self.num_buckets // 2, self.num_buckets // 4
        sign = np.where(relative > 0, half, 0)
        distance = np.abs(relative)
        ratio = np.log(np.maximum(distance, 1) / exact) / math.log(self.max_distance / exact)
        far = exact + (ratio * (half - exact)).astype(np.int32)
        return sign + np.where(distance < exact, distance, np.minimum(far, half - 1))
