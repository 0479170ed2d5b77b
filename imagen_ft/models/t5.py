"""The encoder of T5 v1.1 (Raffel et al. 2020; Shazeer 2020 for the gated gelu)."""

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
    """Encodes tokens. Module and parameter names mirror the public checkpoints.

    Attributes:
        vocab_size: rows of the embedding.
        d_model: width of the states.
        d_kv: channels a head.
        d_ff: width of the feed-forward layer.
        num_layers: blocks.
        num_heads: heads a block.
        num_buckets: of the relative positions (half of them for each direction).
        max_distance: beyond it all positions share the last bucket.
        dtype: of the matrix products; the residual stream, norms and softmax are float32, for T5's
            activations grow to where bfloat16 resolves hundreds and float16 overflows. With float16
            what is added to the stream is float32 too (transformers keeps `wo` so).
    """

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    num_buckets: int = 32
    max_distance: int = 128
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "b n"], mask: Bool[Array, "b n"]
    ) -> Float[Array, "b n d"]:
        """Encodes.

        Args:
            tokens: ids.
            mask: which of them are not padding.

        Returns:
            States of every position, padding included; float32.
        """
        embedding = nn.Embed(
            self.vocab_size,
            self.d_model,
            embedding_init=nn.initializers.normal(1.0),
            name="shared",
        )
        x = embedding(tokens).astype(jnp.float32)
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
    """Self-attention, then a gated feed-forward layer, both residual and pre-normed."""

    d_model: int
    d_kv: int
    d_ff: int
    num_heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], bias: Float[Array, "1 h n n"], mask: Bool[Array, "b n"]
    ) -> Float[Array, "b n d"]:
        # What leads to the residual stream has its range.
        outward = jnp.float32 if jnp.dtype(self.dtype) == jnp.float16 else self.dtype

        def dense(name: str, width: int, fan: float, dtype: Any = self.dtype) -> nn.Dense:
            init = nn.initializers.normal(fan**-0.5)
            return Dense(width, use_bias=False, kernel_init=init, dtype=dtype, name=name)

        inner = self.num_heads * self.d_kv

        def project(name: str, fan: float) -> Array:
            y = dense(name, inner, fan)(normed)
            return y.reshape(*y.shape[:2], self.num_heads, self.d_kv)

        normed = RMSNorm(name="layer_0_layer_norm")(x).astype(self.dtype)
        query, key, value = (
            project("SelfAttention_q", self.d_model * self.d_kv),
            project("SelfAttention_k", self.d_model),
            project("SelfAttention_v", self.d_model),
        )
        # T5 does not scale its logits: the scale is in the initial weights.
        out = attend_plainly(query, key, value, bias, mask[:, None, None, :], scale=1.0)
        out = out.reshape(*x.shape[:2], inner)
        x = x + dense("SelfAttention_o", self.d_model, inner, outward)(out)
        normed = RMSNorm(name="layer_1_layer_norm")(x).astype(self.dtype)
        gate = jax.nn.gelu(dense("wi_0", self.d_ff, self.d_model)(normed), approximate=True)
        linear = dense("wi_1", self.d_ff, self.d_model)(normed)
        hidden = gate.astype(outward) * linear.astype(outward)
        return x + dense("wo", self.d_model, self.d_ff, outward)(hidden)


class RMSNorm(nn.Module):
    """T5's layer norm: no mean, no bias, in float32."""

    @nn.compact
    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        scale = self.param("weight", nn.initializers.ones, (x.shape[-1],))
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
        return x * scale.reshape((1,) * (x.ndim - 1) + (-1,))


class RelativePositionBias(nn.Module):
    """One learned bias a head and bucket of key position minus query position."""

    num_heads: int
    num_buckets: int
    max_distance: int

    @nn.compact
    def __call__(self, length: int) -> Float[Array, "1 h n n"]:
        table = nn.Embed(self.num_buckets, self.num_heads, name="embedding")
        position = np.arange(length)
        buckets = self._bucket(position[None, :] - position[:, None])
        return table(buckets).astype(jnp.float32).transpose(2, 0, 1)[None]

    def _bucket(self, relative: Int[np.ndarray, "n n"]) -> Int[np.ndarray, "n n"]:
        """Half of the buckets for each sign; of these half exact, half logarithmic.

        Some distances lie on the border of two buckets, where a device's logarithm may miss it.
        """
        half, exact = self.num_buckets // 2, self.num_buckets // 4
        sign = np.where(relative > 0, half, 0)
        distance = np.abs(relative)
        ratio = np.log(np.maximum(distance, 1) / exact) / math.log(self.max_distance / exact)
        far = exact + (ratio * (half - exact)).astype(np.int32)
        return sign + np.where(distance < exact, distance, np.minimum(far, half - 1))
