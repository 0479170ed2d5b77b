"""The transformer between a latent U-Net's resnets, which attends to its pixels and to the text.

Module and parameter names mirror the public checkpoints.
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from imagen_ft.models.blocks import GroupNorm, KeysValues
from launch.runtime.devices.mesh import split_batch
from launch.runtime.layers.layers import Conv, Dense, attend, gelu
from launch.runtime.types import Array


class Transformer(nn.Module):
    """Blocks between two projections, residual (Rombach et al. 2022, appendix E.2).

    Attributes:
        width: channels.
        num_heads: heads of every attention.
        depth: blocks.
        num_groups: of the norm.
        linear_projection: see `LatentUNet`.
        remat: whether every block keeps only its inputs for the backward pass.
        dtype: of the computation.
    """

    width: int
    num_heads: int
    depth: int
    num_groups: int
    linear_projection: bool
    remat: bool = False
    dtype: Any = jnp.float32

    def setup(self):
        projection = functools.partial(Dense, self.width, dtype=self.dtype)
        if not self.linear_projection:
            projection = functools.partial(Conv, self.width, (1, 1), dtype=self.dtype)
        block = nn.remat(TransformerBlock) if self.remat else TransformerBlock
        self.norm = GroupNorm(self.num_groups, self.dtype, 1e-6)
        self.proj_in = projection()
        self.transformer_blocks = [
            block(self.width, self.num_heads, self.dtype) for _ in range(self.depth)
        ]
        self.proj_out = projection()

    def context(self, text: Float[Array, "b n d"]) -> tuple[KeysValues, ...]:
        """The text's keys and values for each block."""
        return tuple(block.context(text) for block in self.transformer_blocks)

    def __call__(
        self, x: Float[Array, "b h w c"], texts: tuple[KeysValues, ...]
    ) -> Float[Array, "b h w c"]:
        tokens = self.proj_in(self.norm(x)).reshape(x.shape[0], -1, self.width)  # [b, h * w, c]
        for block, text in zip(self.transformer_blocks, texts, strict=True):
            tokens = block(tokens, text)
        return split_batch(x + self.proj_out(tokens.reshape(x.shape)))


class TransformerBlock(nn.Module):
    """Attention to the pixels, to the text, and a gated feed-forward layer, each pre-normed.

    Attributes:
        width: channels.
        num_heads: of both attentions.
        dtype: of the computation.
    """

    width: int
    num_heads: int
    dtype: Any = jnp.float32

    def setup(self):
        norm = functools.partial(nn.LayerNorm, 1e-5, dtype=jnp.float32)
        inner = functools.partial(Dense, self.width, use_bias=False, dtype=self.dtype)
        outer = functools.partial(Dense, self.width, dtype=self.dtype)
        self.norm1, self.norm2, self.norm3 = norm(), norm(), norm()
        self.attn1_to_q, self.attn1_to_k, self.attn1_to_v = inner(), inner(), inner()
        self.attn2_to_q, self.attn2_to_k, self.attn2_to_v = inner(), inner(), inner()
        self.attn1_to_out_0, self.attn2_to_out_0 = outer(), outer()
        self.ff_net_0_proj = Dense(8 * self.width, dtype=self.dtype)
        self.ff_net_2 = outer()

    def context(self, text: Float[Array, "b n d"]) -> KeysValues:
        """The text's keys and values."""
        return self._heads(self.attn2_to_k(text)), self._heads(self.attn2_to_v(text))

    def __call__(self, x: Float[Array, "b n c"], text: KeysValues) -> Float[Array, "b n c"]:
        normed = self.norm1(x)
        query, key, value = (
            self._heads(project(normed))
            for project in (self.attn1_to_q, self.attn1_to_k, self.attn1_to_v)
        )
        x = x + self.attn1_to_out_0(attend(query, key, value).reshape(x.shape))
        query = self._heads(self.attn2_to_q(self.norm2(x)))
        x = x + self.attn2_to_out_0(attend(query, *text).reshape(x.shape))
        # Shazeer 2020, section 2: GEGLU.
        hidden, gate = jnp.split(self.ff_net_0_proj(self.norm3(x)), 2, axis=-1)
        return x + self.ff_net_2(hidden * gelu(gate))

    def _heads(self, x: Float[Array, "b n c"]) -> Float[Array, "b n heads d"]:
        return x.reshape(*x.shape[:2], self.num_heads, -1)
