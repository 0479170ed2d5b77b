"""The U-Net of DeepFloyd IF and of Imagen's base (Saharia et al. 2022, appendix B)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from imagen_ft.models.blocks import (
    AddedKVAttention,
    GroupNorm,
    ResnetBlock,
    TextTimeEmbedding,
    TimestepEmbedding,
    gelu,
    timestep_embedding,
)


class UNet(nn.Module):
    """A text-conditional U-Net over pixels, for base and super-resolution stages.

    Attributes:
        out_channels: twice the image's channels where the variance is learned.
        block_out_channels: width of each level, from the finest.
        layers_per_block: resnets a level going down (one more going up), or one such number for
            each level.
        attention: for each level, whether it attends to itself and the text.
        cross_attention_dim: width of the projected text.
        time_embedding_dim: width of the embeddings of time, noise level and pooled text; 0 is four
            times the finest level's.
        attention_head_dim: channels a head.
        num_groups: groups of every group norm.
        pooling_heads: heads of the text's attention pooling.
        noise_level: whether the noise level of a low-resolution condition is embedded
            (super-resolution; the condition itself is concatenated to x).
        skip_time_act: the embeddings are activated once, not in every resnet (IF's stage II).
        out_scale: every resnet's output is divided by it.
        dtype: of the computation; parameters, statistics and output are float32.
    """

    out_channels: int
    block_out_channels: Sequence[int]
    layers_per_block: int | Sequence[int]
    attention: Sequence[bool]
    cross_attention_dim: int
    time_embedding_dim: int = 0
    attention_head_dim: int = 64
    num_groups: int = 32
    pooling_heads: int = 64
    noise_level: bool = False
    skip_time_act: bool = False
    out_scale: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Float[Array, " b"],
        text: Float[Array, "b n d"],
        noise_level: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b h w out"]:
        """Predicts eps.

        Args:
            x: noisy images; for super-resolution with the low-resolution images, already of the
                same size, concatenated behind them.
            t: time, in the units that the weights were trained with (0 to 999 for IF).
            text: states of the text encoder.
            noise_level: of the low-resolution images, in the units of t.
        """
        embedding = self._embed(t, text, noise_level)
        text = nn.Dense(self.cross_attention_dim, dtype=self.dtype, name="encoder_hid_proj")(text)
        h = self._conv(self.block_out_channels[0], "conv_in")(x)
        skips = [h]
        for level in range(len(self.block_out_channels)):
            h = self._down(level, h, embedding, text, skips)
        h = self._resnet(self.block_out_channels[-1], "mid_block_resnets_0")(h, embedding)
        h = self._attend("mid_block_attentions_0")(h, text)
        h = self._resnet(self.block_out_channels[-1], "mid_block_resnets_1")(h, embedding)
        for level in reversed(range(len(self.block_out_channels))):
            h = self._up(level, h, embedding, text, skips)
        h = gelu(GroupNorm(self.num_groups, self.dtype, name="conv_norm_out")(h))
        return self._conv(self.out_channels, "conv_out")(h).astype(jnp.float32)

    def _embed(self, t: Array, text: Array, noise_level: Array | None) -> Array:
        first = self.block_out_channels[0]
        width = self.time_embedding_dim or 4 * first
        if self.noise_level != (noise_level is not None):
            raise ValueError(
                "noise_level goes with a model that has noise_level=True, and only there"
            )
        embedding = TimestepEmbedding(width, self.dtype, name="time_embedding")(
            timestep_embedding(t, first)
        )
        if noise_level is not None:
            embedding += TimestepEmbedding(width, self.dtype, name="class_embedding")(
                timestep_embedding(noise_level, first)
            )
        embedding += TextTimeEmbedding(width, self.pooling_heads, self.dtype, name="add_embedding")(
            text
        )
        return gelu(embedding) if self.skip_time_act else embedding

    def _down(
        self, level: int, h: Array, embedding: Array, text: Array, skips: list[Array]
    ) -> Array:
        name, width = f"down_blocks_{level}", self.block_out_channels[level]
        for layer in range(self._layers(level)):
            h = self._resnet(width, f"{name}_resnets_{layer}")(h, embedding)
            if self.attention[level]:
                h = self._attend(f"{name}_attentions_{layer}")(h, text)
            skips.append(h)
        if level < len(self.block_out_channels) - 1:
            h = self._resnet(width, f"{name}_downsamplers_0", "down")(h, embedding)
            skips.append(h)
        return h

    def _up(self, level: int, h: Array, embedding: Array, text: Array, skips: list[Array]) -> Array:
        # Checkpoints count the blocks of the way up from the coarsest.
        name = f"up_blocks_{len(self.block_out_channels) - 1 - level}"
        width = self.block_out_channels[level]
        for layer in range(self._layers(level) + 1):
            h = jnp.concatenate([h, skips.pop()], axis=-1)
            h = self._resnet(width, f"{name}_resnets_{layer}")(h, embedding)
            if self.attention[level]:
                h = self._attend(f"{name}_attentions_{layer}")(h, text)
        if level > 0:
            h = self._resnet(width, f"{name}_upsamplers_0", "up")(h, embedding)
        return h

    def _layers(self, level: int) -> int:
        layers = self.layers_per_block
        return layers if isinstance(layers, int) else layers[level]

    def _conv(self, width: int, name: str) -> nn.Conv:
        return nn.Conv(width, (3, 3), dtype=self.dtype, name=name)

    def _resnet(self, width: int, name: str, resample: str = "") -> ResnetBlock:
        return ResnetBlock(
            width=width,
            num_groups=self.num_groups,
            resample=resample,
            skip_time_act=self.skip_time_act,
            out_scale=self.out_scale,
            dtype=self.dtype,
            name=name,
        )

    def _attend(self, name: str) -> AddedKVAttention:
        return AddedKVAttention(
            head_dim=self.attention_head_dim,
            num_groups=self.num_groups,
            norm_cross_groups=self.num_groups,
            dtype=self.dtype,
            name=name,
        )
