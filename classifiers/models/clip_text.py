"""The text encoders of CLIP and OpenCLIP (Radford et al. 2021, section 2.4), and of SigLIP."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from launch.errors import InputError
from launch.runtime.layers.layers import Dense, activation, attend_plainly
from launch.runtime.types import Array

EPSILON = 1e-5
POOLS = ("end", "last")


class TextStates(NamedTuple):
    """What a text encoder returns, all of it float32.

    Attributes:
        last: states after the last norm; Stable Diffusion 1 and 2 attend to them.
        penultimate: what the last layer takes, without a norm; SDXL attends to them.
        pooled: the last state at the end token, projected where the weights have a projection.
    """

    last: Float[Array, "b n d"]
    penultimate: Float[Array, "b n d"]
    pooled: Float[Array, "b p"]


class ClipTextEncoder(nn.Module):
    """Encodes tokens. Module and parameter names mirror the public ones.

    Attributes:
        width: of the states.
        mlp_width: of the feed-forward layers.
        num_layers: blocks. Stable Diffusion 2's files lack OpenCLIP's last one.
        num_heads: heads a block.
        activation: of `layers.ACTIVATIONS`; OpenAI's weights have 'quick_gelu'.
        projection_width: of the pooled text; 0 is no projection.
        projection_bias: whether the projection has one, as SigLIP's.
        vocab_size: rows of the embedding.
        max_length: the most tokens.
        end_token: whose first state is the pooled one; 2, in old files, is the highest id there is.
        pool: 'end' is the state at the end token, 'last' the last one, as SigLIP's.
        causal: no token sees a later one; SigLIP's see all.
        norm_eps: of the norms.
        dtype: of the matrix products; the residual stream, norms and softmax are float32.
    """

    width: int
    mlp_width: int
    num_layers: int
    num_heads: int
    activation: str = "gelu"
    projection_width: int = 0
    projection_bias: bool = False
    vocab_size: int = 49408
    max_length: int = 77
    end_token: int = 49407
    pool: str = "end"
    causal: bool = True
    norm_eps: float = EPSILON
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Int[Array, "b n"]) -> TextStates:
        """Encodes.

        Args:
            tokens: ids, with an end token in each row; padding behind it is encoded like the rest.

        Raises:
            ValueError: there are more than `max_length`.
        """
        length = tokens.shape[1]
        if length > self.max_length:
            raise ValueError(f"texts must have at most {self.max_length} tokens, got {length}")
        positions = nn.Embed(self.max_length, self.width, name="embeddings_position_embedding")
        x = nn.Embed(self.vocab_size, self.width, name="embeddings_token_embedding")(tokens)
        x = (x + positions(jnp.arange(length))[None]).astype(jnp.float32)
        penultimate = x
        for layer in range(self.num_layers):
            penultimate = x
            x = ClipTextBlock(
                self.mlp_width,
                self.num_heads,
                self.activation,
                self.causal,
                self.norm_eps,
                self.dtype,
                name=f"layers_{layer}",
            )(x)
        last = nn.LayerNorm(self.norm_eps, name="final_layer_norm")(x)
        pooled = self._pool(last, tokens)
        if self.projection_width:
            projection = Dense(
                self.projection_width,
                use_bias=self.projection_bias,
                dtype=self.dtype,
                name="text_projection",
            )
            pooled = projection(pooled).astype(jnp.float32)
        return TextStates(last, penultimate, pooled)

    def _pool(self, states: Array, tokens: Array) -> Float[Array, "b d"]:
        if self.pool not in POOLS:
            raise InputError(f"pool must be one of {', '.join(POOLS)}, got {self.pool!r}")
        if self.pool == "last":
            return states[:, -1]
        ends = tokens if self.end_token == 2 else tokens == self.end_token
        return jnp.take_along_axis(states, ends.argmax(1)[:, None, None], axis=1)[:, 0]


class ClipTextBlock(nn.Module):
    """Self-attention, then a feed-forward layer, both residual and pre-normed.

    Attributes:
        mlp_width: see `ClipTextEncoder`.
        num_heads: see `ClipTextEncoder`.
        activation: see `ClipTextEncoder`.
        causal: see `ClipTextEncoder`.
        norm_eps: see `ClipTextEncoder`.
        dtype: see `ClipTextEncoder`.
    """

    mlp_width: int
    num_heads: int
    activation: str
    causal: bool
    norm_eps: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        dense = lambda name, width: Dense(width, dtype=self.dtype, name=name)  # noqa: E731
        length, width = x.shape[1:]
        normed = nn.LayerNorm(self.norm_eps, name="layer_norm1")(x)

        def project(name: str) -> Array:
            y = dense(f"self_attn_{name}_proj", width)(normed)
            return y.reshape(*y.shape[:2], self.num_heads, -1)  # [b, n, heads, d / heads]

        earlier = jnp.asarray(np.tri(length, dtype=bool))[None, None] if self.causal else None
        out = attend_plainly(project("q"), project("k"), project("v"), mask=earlier)
        x = x + dense("self_attn_out_proj", width)(out.reshape(x.shape))
        normed = nn.LayerNorm(self.norm_eps, name="layer_norm2")(x)
        hidden = activation(self.activation)(dense("mlp_fc1", self.mlp_width)(normed))
        return x + dense("mlp_fc2", width)(hidden)
