"""The U-Net of Stable Diffusion (Rombach et al. 2022, appendix E.2; Podell et al. 2023)."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from imagen_ft.models.blocks import (
    GroupNorm,
    KeysValues,
    TimestepEmbedding,
    timestep_embedding,
)
from imagen_ft.models.latent_blocks import Downsample, LatentResnet, Upsample
from imagen_ft.models.transformer import Transformer
from launch.runtime.layers.layers import Conv
from launch.runtime.types import Array

EPSILON = 1e-5


class Added(NamedTuple):
    """What SDXL takes besides the text's states (Podell et al. 2023, sections 2.2 and 2.3)."""

    pooled: Float[Array, "b d"]
    # In pixels: height and width of the original, top and left of the crop, height and width of
    # the image to make.
    sizes: Float[Array, "b s"]


class LatentContext(NamedTuple):
    """What a network needs besides x_t and t, computed once for all steps of sampling."""

    embedding: tuple[Float[Array, "b d"], ...]  # of pooled text and sizes; () if it takes neither
    # Of the text, for each block of each transformer, in the order of the forward pass.
    keys_values: tuple[tuple[KeysValues, ...], ...]


class LatentUNet(nn.Module):
    """A text-conditional U-Net over latents. Names mirror the public checkpoints.

    A field that is one value or a sequence holds for all levels or has one entry a level, finest
    first; the middle goes with the coarsest level.
    """

    out_channels: int
    block_out_channels: Sequence[int]  # width of each level, finest first
    attention: Sequence[bool]  # for each level, whether it has transformers; the middle always has
    num_heads: int | Sequence[int]
    layers_per_block: int = 2  # resnets a level going down; one more going up
    depths: int | Sequence[int] = 1  # blocks a transformer
    linear_projection: bool = False  # else 1x1 convolutions: the same numbers in other shapes
    size_embedding_dim: int = 0  # channels for each of `Added.sizes`; 0: the network takes no Added
    num_groups: int = 32
    remat: bool | Sequence[bool] = False  # recompute resnets and blocks in the backward pass
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
        return self.num_heads if isinstance(self.num_heads, int) else self.num_heads[level]

    def setup(self):
        # 1. Embeddings and the first convolution.
        first, levels = self.block_out_channels[0], len(self.block_out_channels)
        self.time_embedding = TimestepEmbedding(4 * first, self.dtype, nn.silu)
        if self.size_embedding_dim:
            self.add_embedding = TimestepEmbedding(4 * first, self.dtype, nn.silu)
        self.conv_in = Conv(first, (3, 3), dtype=self.dtype)
        # 2. Down, middle, up. The names are the checkpoints'; `order` is that of the forward pass.
        order = []
        for level in range(levels):
            name = f"down_blocks_{level}"
            order += self._add_layers(level, name, self.layers_per_block)
            if level < levels - 1:
                setattr(self, f"{name}_downsamplers_0", Downsample((1, 1), self.dtype))
        self._add_resnet(levels - 1, "mid_block_resnets_0")
        order.append(self._add_transformer(levels - 1, "mid_block_attentions_0"))
        self._add_resnet(levels - 1, "mid_block_resnets_1")
        for level in reversed(range(levels)):
            name = self._up_name(level)
            order += self._add_layers(level, name, self.layers_per_block + 1)
            if level > 0:
                setattr(self, f"{name}_upsamplers_0", Upsample(self.dtype))
        self.transformer_order = tuple(order)
        # 3. The prediction.
        self.conv_norm_out = GroupNorm(self.num_groups, self.dtype, EPSILON)
        self.conv_out = Conv(self.out_channels, (3, 3), dtype=self.dtype)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Float[Array, " b"],
        text: Float[Array, "b n d"],
        added: Added | None = None,
    ) -> Float[Array, "b h w out"]:
        """Predicts eps or v, whichever the weights were trained for.

        `t` is in the units of training (0 to 999). States of two text encoders are concatenated
        along the last axis of `text`. Raises `ValueError` if `added` is missing for SDXL or given
        for another model, or if height or width is not a multiple of the total stride.
        """
        return self.denoise(x, t, self.context(text, added))

    def context(self, text: Float[Array, "b n d"], added: Added | None = None) -> LatentContext:
        """What `denoise` needs from the text and the sizes; see `__call__` for both."""
        if bool(self.size_embedding_dim) != (added is not None):
            raise ValueError(
                "added must be given if and only if the model has a size_embedding_dim above 0"
            )
        embedding = []
        if added is not None:
            # Each size gets its own sinusoids; all are concatenated behind the pooled text.
            sinusoids = timestep_embedding(added.sizes.reshape(-1), self.size_embedding_dim)
            sinusoids = sinusoids.reshape(added.sizes.shape[0], -1)  # [b, sizes * channels]
            embedding = [self.add_embedding(jnp.concatenate([added.pooled, sinusoids], axis=-1))]
        keys_values = (getattr(self, name).context(text) for name in self.transformer_order)
        return LatentContext(tuple(embedding), tuple(keys_values))

    def denoise(
        self, x: Float[Array, "b h w c"], t: Float[Array, " b"], context: LatentContext
    ) -> Float[Array, "b h w out"]:
        """As `__call__`, given the result of `context`."""
        levels = range(len(self.block_out_channels))
        stride = 2 ** (len(levels) - 1)
        if x.shape[1] % stride or x.shape[2] % stride:
            raise ValueError(
                f"latents must be a multiple of {stride} (the total stride) each way, got "
                f"{x.shape[1]}x{x.shape[2]}"
            )
        # 1. Embed the time, and what the context adds to it.
        embedding = self.time_embedding(timestep_embedding(t, self.block_out_channels[0]))
        for vector in context.embedding:
            embedding = embedding + vector
        # 2. Down: keep every output for the way up.
        texts = iter(context.keys_values)
        h = self.conv_in(x)
        skips = [h]
        for level in levels:
            name = f"down_blocks_{level}"
            for layer in range(self.layers_per_block):
                h = self._layer(level, f"{name}_{{}}_{layer}", h, embedding, texts)
                skips.append(h)
            if level < levels[-1]:
                h = getattr(self, f"{name}_downsamplers_0")(h)
                skips.append(h)
        # 3. Middle.
        h = self.mid_block_resnets_0(h, embedding)
        h = self.mid_block_attentions_0(h, next(texts))
        h = self.mid_block_resnets_1(h, embedding)
        # 4. Up: each resnet takes one kept output.
        for level in reversed(levels):
            name = self._up_name(level)
            for layer in range(self.layers_per_block + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._layer(level, f"{name}_{{}}_{layer}", h, embedding, texts)
            if level > 0:
                h = getattr(self, f"{name}_upsamplers_0")(h)
        return self.conv_out(nn.silu(self.conv_norm_out(h))).astype(jnp.float32)

    def _layer(
        self,
        level: int,
        name: str,
        h: Array,
        embedding: Array,
        texts: Iterator[tuple[KeysValues, ...]],
    ) -> Array:
        h = getattr(self, name.format("resnets"))(h, embedding)
        if self.attention[level]:
            h = getattr(self, name.format("attentions"))(h, next(texts))
        return h

    def _up_name(self, level: int) -> str:
        # Checkpoints count the up blocks from the coarsest level.
        return f"up_blocks_{len(self.block_out_channels) - 1 - level}"

    def _add_layers(self, level: int, name: str, layers: int) -> list[str]:
        # Returns the names of the transformers.
        for layer in range(layers):
            self._add_resnet(level, f"{name}_resnets_{layer}")
        if not self.attention[level]:
            return []
        names = [f"{name}_attentions_{layer}" for layer in range(layers)]
        return [self._add_transformer(level, name) for name in names]

    def _add_resnet(self, level: int, name: str) -> None:
        # setattr, since Flax names a submodule by the attribute that it is assigned to.
        block = nn.remat(LatentResnet) if self._of_level(self.remat, level) else LatentResnet
        width = self.block_out_channels[level]
        setattr(self, name, block(width, self.num_groups, EPSILON, self.dtype))

    def _add_transformer(self, level: int, name: str) -> str:
        fields = dict(
            width=self.block_out_channels[level],
            num_heads=self._of_level(self.num_heads, level),
            depth=self._of_level(self.depths, level),
            num_groups=self.num_groups,
            linear_projection=self.linear_projection,
            remat=self._of_level(self.remat, level),
            dtype=self.dtype,
        )
        setattr(self, name, Transformer(**fields))
        return name

    def _of_level(self, values: Any, level: int) -> Any:
        return values[level] if isinstance(values, Sequence) else values
