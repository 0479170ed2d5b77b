"""The Efficient U-Net of Imagen's super-resolution stages (Saharia et al. 2022, appendix B).

Most of the parameters are at the lowest resolution. Every block going down starts with a strided
convolution, every block going up ends with the upsampling. The paper's figures leave open, and we
chose:

* Where the width changes. The sampling convolutions keep it, as they work at the higher
  resolution; the first residual block going down widens, the last one going up narrows.
* How many skips. One a block, and one from the input convolution, each added going up.
* What is scaled by 1/sqrt(2). Every sum of two branches: residual, attention and skip alike, so
  that sums keep the variance of their terms (Song et al. 2021; Saharia et al. 2021).
* The upsampling. Nearest neighbours, then a 3x3 convolution: no checkerboards (Odena et al. 2016).
* The hidden width of the feed-forward layer in an attention block: twice the channels.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from imagen_ft.models.blocks import (
    Dtype,
    GroupNorm,
    KeysValues,
    TextTimeEmbedding,
    TimestepEmbedding,
    attend,
    timestep_embedding,
    upsample_nearest,
)
from imagen_ft.models.unet import Context
from launch.runtime.devices.mesh import split_batch
from launch.runtime.layers.layers import Conv, Dense
from launch.runtime.types import Array


class EfficientUNet(nn.Module):
    """A text-conditional U-Net for super-resolution, light at high resolutions.

    Sequences have one entry a block, finest first.
    """

    out_channels: int  # 3 for the eps of an image
    block_out_channels: Sequence[int]  # width of each block; each halves height and width
    layers_per_block: Sequence[int]  # residual blocks, the same number going down and up
    self_attention: Sequence[bool]  # whether a block ends with it and a feed-forward layer
    # Whether a block attends to the text. With self-attention the text's keys and values join those
    # of the image, as in the base: one attention costs less than two. Without it this is
    # cross-attention.
    text_attention: Sequence[bool]
    cross_attention_dim: int  # channels of the projected text
    # Channels of the embeddings of time, noise level and pooled text; 0: four times the finest's.
    time_embedding_dim: int = 0
    num_heads: int = 8
    num_groups: int = 32
    pooling_heads: int = 8  # of the text's attention pooling
    noise_level: bool = True  # whether that of the low-resolution images is embedded
    # Recompute residual blocks and attentions in the backward pass: all, or one choice a block.
    remat: bool | Sequence[bool] = False
    dtype: Any = jnp.float32  # of the computation; parameters, statistics and output: float32

    @property
    def halvings(self) -> int:
        """How many times height and width are halved."""
        return len(self.block_out_channels)

    @nn.nowrap
    def heads(self, level: int) -> int:
        """The heads of an attention of this level."""
        return self.num_heads

    def setup(self):
        # 1. Embeddings of time, noise level and text.
        first = self.block_out_channels[0]
        width = self.time_embedding_dim or 4 * first
        self.time_embedding = TimestepEmbedding(width, self.dtype)
        if self.noise_level:
            self.noise_level_embedding = TimestepEmbedding(width, self.dtype)
        self.text_projection = Dense(self.cross_attention_dim, dtype=self.dtype)
        self.text_embedding = TextTimeEmbedding(width, self.pooling_heads, self.dtype)
        # 2. Blocks, each number halving going down and doubling going up.
        self.conv_in = Conv(first, (3, 3), dtype=self.dtype)
        self.down = [DBlock(**self._block(n)) for n in range(len(self.block_out_channels))]
        self.up = [UBlock(**self._block(n)) for n in range(len(self.block_out_channels))]
        self.norm_out = GroupNorm(self.num_groups, self.dtype)
        self.conv_out = Conv(self.out_channels, (3, 3), dtype=self.dtype)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Float[Array, " b"],
        text: Float[Array, "b n d"],
        noise_level: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b h w out"]:
        """Predicts eps.

        `x` holds the noisy images and behind them, along the channels, the low-resolution images,
        upsampled and noised. Sizes may differ from those of training. `t` and `noise_level`, of the
        low-resolution images, are in the units of training. Raises `ValueError` if height or width
        is not a multiple of 2**blocks, or if `noise_level` is missing or not wanted.
        """
        return self.denoise(x, t, self.context(text, noise_level))

    def context(
        self, text: Float[Array, "b n d"], noise_level: Float[Array, " b"] | None = None
    ) -> Context:
        """What `denoise` needs from the text and the noise level; see `__call__` for both."""
        if self.noise_level != (noise_level is not None):
            raise ValueError(
                "noise_level must be given if and only if the model has noise_level=True"
            )
        text = self.text_projection(text)
        embedding = [self.text_embedding(text)]
        if noise_level is not None:
            sinusoid = timestep_embedding(noise_level, self.block_out_channels[0])
            embedding.append(self.noise_level_embedding(sinusoid))
        # In the order in which `denoise` takes them.
        blocks = [block for block in (*self.down, *reversed(self.up)) if block.text_attention]
        return Context(tuple(embedding), tuple(block.context(text) for block in blocks))

    def denoise(
        self, x: Float[Array, "b h w c"], t: Float[Array, " b"], context: Context
    ) -> Float[Array, "b h w out"]:
        """As `__call__`, given the result of `context`."""
        stride = 2 ** len(self.block_out_channels)
        if x.shape[1] % stride or x.shape[2] % stride:
            raise ValueError(
                f"images must be a multiple of {stride} px (the total stride) each way, "
                f"got {x.shape[1]}x{x.shape[2]}"
            )
        # 1. Embed the time, and what the context adds to it; activated once for all blocks.
        embedding = self.time_embedding(timestep_embedding(t, self.block_out_channels[0]))
        embedding = nn.swish(sum(context.embedding, embedding))
        # 2. Down: keep the input of every block.
        texts = iter(context.keys_values)
        h = self.conv_in(x)
        skips = []
        for block in self.down:
            skips.append(h)
            h = block(h, embedding, next(texts) if block.text_attention else None)
        # 3. Up: the output of a block joins the input of its counterpart, which has its shape.
        for block in reversed(self.up):
            h = block(h, embedding, next(texts) if block.text_attention else None)
            h = merge(h, skips.pop())
        return self.conv_out(nn.swish(self.norm_out(h))).astype(jnp.float32)

    def _block(self, number: int) -> dict[str, Any]:
        return dict(
            outer_width=self.block_out_channels[max(number - 1, 0)],
            width=self.block_out_channels[number],
            layers=self.layers_per_block[number],
            self_attention=self.self_attention[number],
            text_attention=self.text_attention[number],
            num_heads=self.num_heads,
            num_groups=self.num_groups,
            remat=self.remat if isinstance(self.remat, bool) else self.remat[number],
            dtype=self.dtype,
        )


class Block(nn.Module):
    """What DBlock and UBlock share: residual blocks, then attention; see `EfficientUNet`."""

    outer_width: int  # channels at the higher resolution
    width: int  # channels at the lower resolution
    layers: int  # residual blocks
    self_attention: bool
    text_attention: bool
    num_heads: int
    num_groups: int
    remat: bool = False
    dtype: Dtype = jnp.float32

    def add_layers(self, widths: Sequence[int]) -> None:
        """Creates residual blocks of these widths, and the attention."""
        wrap = nn.remat if self.remat else lambda module: module
        shared = dict(num_groups=self.num_groups, dtype=self.dtype)
        self.resnets = [wrap(EfficientResnetBlock)(width, **shared) for width in widths]
        if self.self_attention or self.text_attention:
            self.attention = wrap(Attention)(
                widths[-1], self.num_heads, self.self_attention, self.text_attention, **shared
            )

    def context(self, text: Float[Array, "b n d"]) -> KeysValues:
        """The text's keys and values."""
        return self.attention.context(text)

    def run_layers(self, h: Array, embedding: Array, text: KeysValues | None) -> Array:
        """Runs what `add_layers` has created."""
        for resnet in self.resnets:
            h = resnet(h, embedding)
        return self.attention(h, text) if self.self_attention or self.text_attention else h


class DBlock(Block):
    """Strided convolution, then the layers; the first one changes the width."""

    def setup(self):
        self.conv = Conv(self.outer_width, (3, 3), strides=2, dtype=self.dtype)
        self.add_layers([self.width] * self.layers)

    def __call__(
        self, h: Float[Array, "b h w c"], embedding: Float[Array, "b d"], text: KeysValues | None
    ) -> Float[Array, "b h/2 w/2 width"]:
        return self.run_layers(self.conv(h), embedding, text)


class UBlock(Block):
    """The layers, the last of which changes the width, then upsampling."""

    def setup(self):
        self.add_layers([self.width] * (self.layers - 1) + [self.outer_width])
        self.conv = Conv(self.outer_width, (3, 3), dtype=self.dtype)

    def __call__(
        self, h: Float[Array, "b h w c"], embedding: Float[Array, "b d"], text: KeysValues | None
    ) -> Float[Array, "b 2*h 2*w outer_width"]:
        return self.conv(upsample_nearest(self.run_layers(h, embedding, text)))


class EfficientResnetBlock(nn.Module):
    """Residual block with scale-shift norm; the caller has activated the embedding."""

    width: int
    num_groups: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], embedding: Float[Array, "b d"]
    ) -> Float[Array, "b h w width"]:
        conv = functools.partial(Conv, self.width, dtype=self.dtype)
        norm = functools.partial(GroupNorm, self.num_groups, self.dtype)
        h = conv(kernel_size=(3, 3), name="conv1")(nn.swish(norm(name="norm1")(x)))
        modulation = Dense(2 * self.width, dtype=self.dtype, name="modulation")(embedding)
        # Dhariwal & Nichol 2021: adaptive group norm, with 1 + scale so that 0 changes nothing.
        scale, shift = jnp.split(modulation[:, None, None], 2, axis=-1)  # each [b, 1, 1, width]
        h = norm(name="norm2")(h) * (1 + scale) + shift
        h = conv(kernel_size=(3, 3), name="conv2")(nn.swish(h))
        # The paper's figure has a convolution on every shortcut; with equal widths it adds little.
        if x.shape[-1] != self.width:
            x = conv(kernel_size=(1, 1), name="conv_shortcut")(x)
        return merge(x, h)


class Attention(nn.Module):
    """Attention of every pixel to the pixels, to the text, or to both at once."""

    width: int
    num_heads: int  # they share the channels
    self_attention: bool  # to the pixels; adds a feed-forward layer
    text_attention: bool
    num_groups: int  # of the image's norms; the text has a layer norm
    dtype: Dtype = jnp.float32

    def setup(self):
        dense = functools.partial(Dense, dtype=self.dtype)
        # No biases: one of the keys shifts all logits of a query alike, which a softmax ignores.
        project = functools.partial(dense, self.width, use_bias=False)
        self.norm = GroupNorm(self.num_groups, self.dtype)
        self.query, self.out = project(), dense(self.width)
        if self.text_attention:
            self.text_norm = nn.LayerNorm(1e-5, dtype=jnp.float32)
            self.text_key, self.text_value = project(), project()
        if self.self_attention:
            self.key, self.value = project(), project()
            self.feed_forward_norm = GroupNorm(self.num_groups, self.dtype)
            self.feed_forward_in, self.feed_forward_out = dense(2 * self.width), dense(self.width)

    def context(self, text: Float[Array, "b n d"]) -> KeysValues:
        """The text's keys and values."""
        text = self.text_norm(text)
        return self._heads(self.text_key(text)), self._heads(self.text_value(text))

    def __call__(
        self, x: Float[Array, "b h w c"], text: KeysValues | None
    ) -> Float[Array, "b h w c"]:
        h = self.norm(x.reshape(x.shape[0], -1, self.width))  # [b, h * w, c]
        # One softmax over the text's tokens and the pixels: their keys are concatenated.
        pairs = [text] if self.text_attention else []
        if self.self_attention:
            pairs.append((self._heads(self.key(h)), self._heads(self.value(h))))
        keys, values = (jnp.concatenate(arrays, axis=1) for arrays in zip(*pairs, strict=True))
        h = attend(self._heads(self.query(h)), keys, values)
        # [b, h * w, heads, c / heads] to [b, h, w, c]
        x = merge(x, self.out(h.reshape(h.shape[0], -1, self.width)).reshape(x.shape))
        if not self.self_attention:
            return x
        h = self.feed_forward_in(self.feed_forward_norm(x))
        return merge(x, self.feed_forward_out(nn.swish(h)))

    def _heads(self, x: Float[Array, "b n c"]) -> Float[Array, "b n heads c/heads"]:
        return x.reshape(*x.shape[:2], self.num_heads, -1)


def merge(x: Array, y: Array) -> Array:
    """The sum of two branches over sqrt(2): independent branches keep their variance."""
    return split_batch((x + y) * 0.5**0.5)
