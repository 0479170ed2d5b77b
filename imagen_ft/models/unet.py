"""The U-Net of DeepFloyd IF and of Imagen's base (Saharia et al. 2022, appendix B)."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from imagen_ft.models.blocks import (
    AddedKVAttention,
    GroupNorm,
    KeysValues,
    ResnetBlock,
    TextTimeEmbedding,
    TimestepEmbedding,
    gelu,
    timestep_embedding,
)
from launch.runtime.layers.layers import Conv, Dense
from launch.runtime.types import Array


class Context(NamedTuple):
    """What a network needs besides x_t and t, computed once for all steps of sampling."""

    embedding: tuple[Float[Array, "b d"], ...]  # of pooled text and, for super-resolution, noise
    keys_values: tuple[KeysValues, ...]  # of the text, for each attention of the forward pass


class UNet(nn.Module):
    """A text-conditional U-Net over pixels, for base and super-resolution stages.

    A field that is one value or a sequence holds for all levels or has one entry a level, finest
    first; the middle goes with the coarsest level.
    """

    out_channels: int  # twice the image's channels if the variance is learned
    block_out_channels: Sequence[int]  # width of each level
    layers_per_block: int | Sequence[int]  # resnets going down; one more going up
    attention: Sequence[bool]  # for each level, whether it attends to itself and the text
    cross_attention_dim: int  # channels of the projected text
    # Channels of the embeddings of time, noise level and pooled text; 0: four times the finest's.
    time_embedding_dim: int = 0
    # Channels a head. As in diffusers, a sequence is not reversed going up: its first entry is for
    # the finest level going down and for the coarsest going up.
    attention_head_dim: int | Sequence[int] = 64
    num_groups: int = 32
    cross_num_groups: int = 32  # of the text's norm in every attention
    pooling_heads: int = 64  # of the text's attention pooling
    # Whether the noise level of the low-resolution images is embedded (super-resolution; the
    # images themselves are concatenated to x).
    noise_level: bool = False
    skip_time_act: bool = False  # True: resnets do not activate the embedding (IF's stage II)
    time_act: bool | None = None  # activate it once, before all resnets; None: as skip_time_act
    out_scale: float = 1.0  # every resnet's output is divided by it
    mid_out_scale: float | None = None  # the same in the middle; None: out_scale
    remat: bool | Sequence[bool] = False  # recompute resnets and attentions in the backward pass
    dtype: Any = jnp.float32  # of the computation; parameters, statistics and output: float32

    @property
    def halvings(self) -> int:
        """How many times height and width are halved."""
        return len(self.block_out_channels) - 1

    @property
    def self_attention(self) -> Sequence[bool]:
        """For each level, whether it attends to itself."""
        return self.attention

    @nn.nowrap
    def heads(self, level: int) -> int:
        """The most heads of an attention of this level."""
        head_dim = self.attention_head_dim
        smallest = head_dim if isinstance(head_dim, int) else min(head_dim)
        return max(1, self.block_out_channels[level] // smallest)

    def setup(self):
        # 1. Embeddings of time, noise level and text; the first convolution.
        first, levels = self.block_out_channels[0], len(self.block_out_channels)
        width = self.time_embedding_dim or 4 * first
        self.time_embedding = TimestepEmbedding(width, self.dtype)
        if self.noise_level:
            self.class_embedding = TimestepEmbedding(width, self.dtype)
        self.add_embedding = TextTimeEmbedding(width, self.pooling_heads, self.dtype)
        self.encoder_hid_proj = Dense(self.cross_attention_dim, dtype=self.dtype)
        self.conv_in = Conv(first, (3, 3), dtype=self.dtype)
        # 2. Down, middle, up. The names are the checkpoints'; `order` is that of the forward pass.
        order = []
        for level in range(levels):
            order += self._add_layers(level, f"down_blocks_{level}", self._layers(level))
            if level < levels - 1:
                self._add_resnet(level, f"down_blocks_{level}_downsamplers_0", "down")
        self._add_resnet(levels - 1, "mid_block_resnets_0")
        order.append(self._add_attention(levels - 1, "mid_block_attentions_0"))
        self._add_resnet(levels - 1, "mid_block_resnets_1")
        for level in reversed(range(levels)):
            order += self._add_layers(level, self._up_name(level), self._layers(level) + 1)
            if level > 0:
                self._add_resnet(level, f"{self._up_name(level)}_upsamplers_0", "up")
        self.attention_order = tuple(order)
        # 3. The prediction.
        self.conv_norm_out = GroupNorm(self.num_groups, self.dtype)
        self.conv_out = Conv(self.out_channels, (3, 3), dtype=self.dtype)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Float[Array, " b"],
        text: Float[Array, "b n d"],
        noise_level: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b h w out"]:
        """Predicts eps and, if it is learned, the variance in the channels behind eps.

        For super-resolution `x` also holds, behind the noisy images along the channels, the
        low-resolution images, already upsampled. `t` and their `noise_level` are in the units of
        training (0 to 999 for IF). Raises `ValueError` if `noise_level` is missing or not wanted,
        or if height or width is not a multiple of the total stride.
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
        embedding = [self.add_embedding(text)]
        if noise_level is not None:
            sinusoid = timestep_embedding(noise_level, self.block_out_channels[0])
            # First, since the public code adds it first: the order decides the rounding.
            embedding.insert(0, self.class_embedding(sinusoid))
        text = self.encoder_hid_proj(text)
        keys_values = (getattr(self, name).context(text) for name in self.attention_order)
        return Context(tuple(embedding), tuple(keys_values))

    def denoise(
        self, x: Float[Array, "b h w c"], t: Float[Array, " b"], context: Context
    ) -> Float[Array, "b h w out"]:
        """As `__call__`, given the result of `context`."""
        # 1. Embed the time, and what the context adds to it.
        embedding = self.time_embedding(timestep_embedding(t, self.block_out_channels[0]))
        for vector in context.embedding:
            embedding = embedding + vector
        if self.skip_time_act if self.time_act is None else self.time_act:
            embedding = gelu(embedding)
        texts = iter(context.keys_values)
        levels = range(len(self.block_out_channels))
        stride = 2 ** (len(levels) - 1)
        if x.shape[1] % stride or x.shape[2] % stride:
            raise ValueError(
                f"images must be a multiple of {stride} px (the total stride) each way, "
                f"got {x.shape[1]}x{x.shape[2]}"
            )
        # 2. Down: keep every output for the way up.
        h = self.conv_in(x)
        skips = [h]
        for level in levels:
            h = self._down(level, h, embedding, texts, skips)
        # 3. Middle.
        h = self.mid_block_resnets_0(h, embedding)
        h = self.mid_block_attentions_0(h, next(texts))
        h = self.mid_block_resnets_1(h, embedding)
        # 4. Up: each resnet takes one kept output.
        for level in reversed(levels):
            h = self._up(level, h, embedding, texts, skips)
        h = gelu(self.conv_norm_out(h))
        return self.conv_out(h).astype(jnp.float32)

    def _down(
        self,
        level: int,
        h: Array,
        embedding: Array,
        texts: Iterator[KeysValues],
        skips: list[Array],
    ) -> Array:
        name = f"down_blocks_{level}"
        for layer in range(self._layers(level)):
            h = self._layer(level, f"{name}_{{}}_{layer}", h, embedding, texts)
            skips.append(h)
        if level < len(self.block_out_channels) - 1:
            h = getattr(self, f"{name}_downsamplers_0")(h, embedding)
            skips.append(h)
        return h

    def _up(
        self,
        level: int,
        h: Array,
        embedding: Array,
        texts: Iterator[KeysValues],
        skips: list[Array],
    ) -> Array:
        name = self._up_name(level)
        for layer in range(self._layers(level) + 1):
            h = jnp.concatenate([h, skips.pop()], axis=-1)
            h = self._layer(level, f"{name}_{{}}_{layer}", h, embedding, texts)
        return getattr(self, f"{name}_upsamplers_0")(h, embedding) if level > 0 else h

    def _layer(
        self, level: int, name: str, h: Array, embedding: Array, texts: Iterator[KeysValues]
    ) -> Array:
        h = getattr(self, name.format("resnets"))(h, embedding)
        if self.attention[level]:
            h = getattr(self, name.format("attentions"))(h, next(texts))
        return h

    def _layers(self, level: int) -> int:
        layers = self.layers_per_block
        return layers if isinstance(layers, int) else layers[level]

    def _up_name(self, level: int) -> str:
        # Checkpoints count the up blocks from the coarsest level.
        return f"up_blocks_{len(self.block_out_channels) - 1 - level}"

    def _add_layers(self, level: int, name: str, layers: int) -> list[str]:
        # Returns the names of the attentions.
        for layer in range(layers):
            self._add_resnet(level, f"{name}_resnets_{layer}")
        if not self.attention[level]:
            return []
        return [self._add_attention(level, f"{name}_attentions_{layer}") for layer in range(layers)]

    def _add_resnet(self, level: int, name: str, resample: str = "") -> None:
        # setattr, since Flax names a submodule by the attribute that it is assigned to.
        block = nn.remat(ResnetBlock) if self._remat(level) else ResnetBlock
        fields = dict(
            width=self.block_out_channels[level],
            num_groups=self.num_groups,
            resample=resample,
            skip_time_act=self.skip_time_act,
            out_scale=self.out_scale,
            dtype=self.dtype,
        )
        if name.startswith("mid") and self.mid_out_scale is not None:
            fields["out_scale"] = self.mid_out_scale
        setattr(self, name, block(**fields))

    def _add_attention(self, level: int, name: str) -> str:
        head_dim = self.attention_head_dim
        if not isinstance(head_dim, int):
            # Up blocks are numbered from the coarsest level, and the list is indexed by number.
            up = name.startswith("up_blocks")
            head_dim = head_dim[len(head_dim) - 1 - level if up else level]
        block = nn.remat(AddedKVAttention) if self._remat(level) else AddedKVAttention
        fields = dict(
            width=self.block_out_channels[level],
            head_dim=head_dim,
            num_groups=self.num_groups,
            cross_num_groups=self.cross_num_groups,
            dtype=self.dtype,
        )
        setattr(self, name, block(**fields))
        return name

    def _remat(self, level: int) -> bool:
        return self.remat if isinstance(self.remat, bool) else self.remat[level]
