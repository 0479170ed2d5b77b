"""The latent U-Net's transformer over pixels and text, named as in the public checkpoints."""

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
    """Blocks between two projections, residual (Rombach et al. 2022, appendix E.2)."""

    width: int
    num_heads: int
    depth: int  # blocks
    num_groups: int
    linear_projection: bool  # else 1x1 convolutions, as in Stable Diffusion 1
    remat: bool = False  # recompute every block in the backward pass
    dtype: Any = jnp.float32

    def setup(self):
        projection = functools.partial(Dense, self.width, dtype=self.dtype)
        if not self.linear_projection:
            projection = functools.partial(Conv, self.width, (1, 1), dtype=self.dtype)
        block = nn.remat(TransformerBlock) if self.remat else TransformerBlock
        # This norm's epsilon is 1e-6 in the public code; the resnets' is 1e-5.
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
    """Attention to the pixels, to the text, and a gated feed-forward layer, each normed first."""

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
        # 4 * width hidden channels and as many for their gate.
        self.ff_net_0_proj = Dense(8 * self.width, dtype=self.dtype)
        self.ff_net_2 = outer()

    def context(self, text: Float[Array, "b n d"]) -> KeysValues:
        """The text's keys and values."""
        return self._heads(self.attn2_to_k(text)), self._heads(self.attn2_to_v(text))

    def __call__(self, x: Float[Array, "b n c"], text: KeysValues) -> Float[Array, "b n c"]:
        # 1. Self-attention over the pixels.
        normed = self.norm1(x)
        query, key, value = (
            self._heads(project(normed))
            for project in (self.attn1_to_q, self.attn1_to_k, self.attn1_to_v)
        )
        x = x + self.attn1_to_out_0(attend(query, key, value).reshape(x.shape))
        # 2. Cross-attention to the text.
        query = self._heads(self.attn2_to_q(self.norm2(x)))
        x = x + self.attn2_to_out_0(attend(query, *text).reshape(x.shape))
        # 3. Feed-forward layer: GEGLU (Shazeer 2020, section 2).
        hidden, gate = jnp.split(self.ff_net_0_proj(self.norm3(x)), 2, axis=-1)
        return x + self.ff_net_2(hidden * gelu(gate))

    def _heads(self, x: Float[Array, "b n c"]) -> Float[Array, "b n heads d"]:
        return x.reshape(*x.shape[:2], self.num_heads, -1)
