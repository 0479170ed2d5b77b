"""The text encoders of CLIP and OpenCLIP (Radford et al. 2021, section 2.4), and of SigLIP."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from launch.errors import InputError
from launch.runtime.layers.cpu_kernels import add_branch
from launch.runtime.layers.layers import Dense, activation, attend_plainly
from launch.runtime.types import Array

EPSILON = 1e-5
POOLS = ("end", "last")


class TextStates(NamedTuple):
    """What a text encoder returns, all in float32."""

    last: Float[Array, "b n d"]  # after the last norm; Stable Diffusion 1 and 2 attend to it
    # What the last layer takes, not normalised; SDXL attends to it.
    penultimate: Float[Array, "b n d"]
    # The last state at the end token, projected where the weights say so.
    pooled: Float[Array, "b p"]


class ClipTextEncoder(nn.Module):
    """Encodes tokens; names of modules and parameters follow transformers'."""

    width: int
    mlp_width: int
    num_layers: int  # Stable Diffusion 2's files lack OpenCLIP's last one
    num_heads: int
    activation: str = "gelu"  # of `layers.ACTIVATIONS`; OpenAI's weights have 'quick_gelu'
    projection_width: int = 0  # of the pooled text; 0 for no projection
    projection_bias: bool = False  # SigLIP's has one
    vocab_size: int = 49408
    max_length: int = 77
    # Its first state is the pooled one; 2, in old files, means the highest id.
    end_token: int = 49407
    pool: str = "end"  # state at the 'end' token, or the 'last' state (SigLIP)
    causal: bool = True  # no token sees a later one; SigLIP's see all
    norm_eps: float = EPSILON
    dtype: Any = jnp.float32  # of matrix products; residual stream, norms and softmax are float32

    @nn.compact
    def __call__(self, tokens: Int[Array, "b n"]) -> TextStates:
        """Encodes token ids, with an end token in each row; padding is encoded like the rest.

        Raises:
            ValueError: there are more than `max_length` tokens.
        """
        length = tokens.shape[1]
        if length > self.max_length:
            raise ValueError(f"texts must have at most {self.max_length} tokens, got {length}")
        positions = nn.Embed(self.max_length, self.width, name="embeddings_position_embedding")
        x = nn.Embed(self.vocab_size, self.width, name="embeddings_token_embedding")(tokens)
        # The residual stream stays in float32; SDXL reads it as it is, in `penultimate`.
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
        # argmax finds the first end token; with 2 it finds the highest id, as OpenAI's code does.
        ends = tokens if self.end_token == 2 else tokens == self.end_token
        return jnp.take_along_axis(states, ends.argmax(1)[:, None, None], axis=1)[:, 0]


class ClipTextBlock(nn.Module):
    """Self-attention, then a feed-forward layer, both residual and pre-norm."""

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

        # [1, 1, n, n], True where a token may look.
        earlier = jnp.asarray(np.tri(length, dtype=bool))[None, None] if self.causal else None
        out = attend_plainly(project("q"), project("k"), project("v"), mask=earlier)
        x = add_branch(x, dense("self_attn_out_proj", width)(out.reshape(x.shape)))
        normed = nn.LayerNorm(self.norm_eps, name="layer_norm2")(x)
        hidden = activation(self.activation)(dense("mlp_fc1", self.mlp_width)(normed))
        return add_branch(x, dense("mlp_fc2", width)(hidden))
