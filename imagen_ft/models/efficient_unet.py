"""The Efficient U-Net of Imagen's super-resolution stages (Saharia et al. 2022, appendix B).

Most of the parameters are at the lowest resolution. Every block on the way down begins with a
strided convolution, every block on the way up ends with the upsampling.

The paper's figures leave open:

* Where the width changes. The sampling convolutions keep it, as they are the ones that work at the
  higher resolution; the first residual block going down widens, the last one going up narrows.
* How many skips. One a block, added to what comes from below, and one from the input convolution.
* What is scaled by 1/sqrt(2). Every sum of two branches: residual, attention and skip alike, so
  that sums keep the variance of what they add (Song et al. 2021; Saharia et al. 2021).
* The upsampling. Nearest neighbours, then a 3x3 convolution: no checkerboards (Odena et al. 2016).
* The hidden width of an attention block, twice the channels: that of its feed-forward layer.
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

    Attributes:
        out_channels: of the prediction; 3 for the eps of an image.
        block_out_channels: width of each block, from the finest; each halves height and width.
        layers_per_block: residual blocks of each, as many going down as going up.
        self_attention: for each block, whether it ends with self-attention and a feed-forward
            layer.
        text_attention: for each block, whether it attends to the text. With self-attention the
            text's keys and values join those of the image, as in the base: one attention costs
            less than two. Without it this is cross-attention.
        cross_attention_dim: width of the projected text.
        time_embedding_dim: width of the embeddings of time, noise level and pooled text; 0 is four
            times the finest block's.
        num_heads: of every attention.
        num_groups: of every group norm.
        pooling_heads: heads of the text's attention pooling.
        noise_level: whether the noise level of the low-resolution images is embedded.
        remat: whether every residual block and attention keeps only its inputs for the backward
            pass and computes the rest again; or one such choice for each block.
        dtype: of the computation; parameters, statistics and output are float32.
    """

    out_channels: int
    block_out_channels: Sequence[int]
    layers_per_block: Sequence[int]
    self_attention: Sequence[bool]
    text_attention: Sequence[bool]
    cross_attention_dim: int
    time_embedding_dim: int = 0
    num_heads: int = 8
    num_groups: int = 32
    pooling_heads: int = 8
    noise_level: bool = True
    remat: bool | Sequence[bool] = False
    dtype: Any = jnp.float32

    @property
    def halvings(self) -> int:
        """How many times height and width are halved on the way down."""
        return len(self.block_out_channels)

    @nn.nowrap
    def heads(self, level: int) -> int:
        """The heads of an attention of this level."""
        return self.num_heads

    def setup(self):
        first = self.block_out_channels[0]
        width = self.time_embedding_dim or 4 * first
        self.time_embedding = TimestepEmbedding(width, self.dtype)
        if self.noise_level:
            self.noise_level_embedding = TimestepEmbedding(width, self.dtype)
        self.text_projection = Dense(self.cross_attention_dim, dtype=self.dtype)
        self.text_embedding = TextTimeEmbedding(width, self.pooling_heads, self.dtype)
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

        Args:
            x: noisy images with the low-resolution images, already noised and of the same size,
                concatenated behind them; height and width are multiples of the total stride, 2 to
                the number of blocks, and may differ from those of training.
            t: time, in the units that the weights were trained with.
            text: states of the text encoder.
            noise_level: of the low-resolution images, in the units of t.

        Raises:
            ValueError: the images cannot be halved as often as there are blocks; `noise_level` is
                given and the model has none, or the other way round.
        """
        return self.denoise(x, t, self.context(text, noise_level))

    def context(
        self, text: Float[Array, "b n d"], noise_level: Float[Array, " b"] | None = None
    ) -> Context:
        """What `denoise` needs of the text and the noise level; see `__call__` for both."""
        if self.noise_level != (noise_level is not None):
            raise ValueError(
                "noise_level goes with a model that has noise_level=True, and only there"
            )
        text = self.text_projection(text)
        embedding = [self.text_embedding(text)]
        if noise_level is not None:
            sinusoid = timestep_embedding(noise_level, self.block_out_channels[0])
            embedding.append(self.noise_level_embedding(sinusoid))
        blocks = [block for block in (*self.down, *reversed(self.up)) if block.text_attention]
        return Context(tuple(embedding), tuple(block.context(text) for block in blocks))

    def denoise(
        self, x: Float[Array, "b h w c"], t: Float[Array, " b"], context: Context
    ) -> Float[Array, "b h w out"]:
        """As `__call__`, with what `context` has returned."""
        stride = 2 ** len(self.block_out_channels)
        if x.shape[1] % stride or x.shape[2] % stride:
            raise ValueError(
                f"images must be a multiple of {stride} px (the total stride) each way, "
                f"got {x.shape[1]}x{x.shape[2]}"
            )
        embedding = self.time_embedding(timestep_embedding(t, self.block_out_channels[0]))
        embedding = nn.swish(sum(context.embedding, embedding))
        texts = iter(context.keys_values)
        h = self.conv_in(x)
        skips = []
        for block in self.down:
            skips.append(h)
            h = block(h, embedding, next(texts) if block.text_attention else None)
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
    """What DBlock and UBlock share: residual blocks, then attention.

    Attributes:
        outer_width: channels on its side of the higher resolution.
        width: channels on its side of the lower resolution.
        layers: residual blocks.
        self_attention: see EfficientUNet, as for the rest.
    """

    outer_width: int
    width: int
    layers: int
    self_attention: bool
    text_attention: bool
    num_heads: int
    num_groups: int
    remat: bool = False
    dtype: Dtype = jnp.float32

    def add_layers(self, widths: Sequence[int]) -> None:
        """Makes the residual blocks of these widths, and the attention."""
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
        """Runs what `add_layers` has made."""
        for resnet in self.resnets:
            h = resnet(h, embedding)
        return self.attention(h, text) if self.self_attention or self.text_attention else h


class DBlock(Block):
    """Strided convolution, then the layers, of which the first one changes the width."""

    def setup(self):
        self.conv = Conv(self.outer_width, (3, 3), strides=2, dtype=self.dtype)
        self.add_layers([self.width] * self.layers)

    def __call__(
        self, h: Float[Array, "b h w c"], embedding: Float[Array, "b d"], text: KeysValues | None
    ) -> Float[Array, "b h/2 w/2 width"]:
        return self.run_layers(self.conv(h), embedding, text)


class UBlock(Block):
    """The layers, of which the last one changes the width, then upsampling."""

    def setup(self):
        self.add_layers([self.width] * (self.layers - 1) + [self.outer_width])
        self.conv = Conv(self.outer_width, (3, 3), dtype=self.dtype)

    def __call__(
        self, h: Float[Array, "b h w c"], embedding: Float[Array, "b d"], text: KeysValues | None
    ) -> Float[Array, "b 2*h 2*w outer_width"]:
        return self.conv(upsample_nearest(self.run_layers(h, embedding, text)))


class EfficientResnetBlock(nn.Module):
    """Residual block with scale-shift norm; the embedding has been activated by the caller.

    Attributes:
        width: output channels.
        num_groups: of both norms.
    """

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
        scale, shift = jnp.split(modulation[:, None, None], 2, axis=-1)
        h = norm(name="norm2")(h) * (1 + scale) + shift
        h = conv(kernel_size=(3, 3), name="conv2")(nn.swish(h))
        # The figure has a convolution on every shortcut; where the width stays it adds little.
        if x.shape[-1] != self.width:
            x = conv(kernel_size=(1, 1), name="conv_shortcut")(x)
        return merge(x, h)


class Attention(nn.Module):
    """Attention of every pixel to the pixels, to the text, or to both at once.

    Projections to queries, keys and values have no biases: a softmax cannot see those of keys.

    Attributes:
        width: channels.
        num_heads: heads; they share the channels.
        self_attention: to the pixels, and then a feed-forward layer.
        text_attention: to the text.
        num_groups: of the norms of the image; the text has a layer norm.
    """

    width: int
    num_heads: int
    self_attention: bool
    text_attention: bool
    num_groups: int
    dtype: Dtype = jnp.float32

    def setup(self):
        dense = functools.partial(Dense, dtype=self.dtype)
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
        pairs = [text] if self.text_attention else []
        if self.self_attention:
            pairs.append((self._heads(self.key(h)), self._heads(self.value(h))))
        keys, values = (jnp.concatenate(arrays, axis=1) for arrays in zip(*pairs, strict=True))
        h = attend(self._heads(self.query(h)), keys, values)
        x = merge(x, self.out(h.reshape(h.shape[0], -1, self.width)).reshape(x.shape))
        if not self.self_attention:
            return x
        h = self.feed_forward_in(self.feed_forward_norm(x))
        return merge(x, self.feed_forward_out(nn.swish(h)))

    def _heads(self, x: Float[Array, "b n c"]) -> Float[Array, "b n heads c/heads"]:
        return x.reshape(*x.shape[:2], self.num_heads, -1)


def merge(x: Array, y: Array) -> Array:
    """The sum of two branches, with their variance."""
    return split_batch((x + y) * 0.5**0.5)
