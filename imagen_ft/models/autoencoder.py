"""The KL auto-encoder of latent diffusion (Rombach et al. 2022, section 3.1)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, PyTree

from imagen_ft.models.blocks import GroupNorm
from imagen_ft.models.latent_blocks import Downsample, LatentResnet, Upsample
from launch.runtime.devices.mesh import split_batch
from launch.runtime.layers.layers import Conv, Dense, attend
from launch.runtime.types import Array, Variables

EPSILON = 1e-6
# Queries that attend at a time. A 1,024 px image has 128^2 = 16,384 latents: the attention weights
# of all of them would take a gigabyte in float32.
PIECE = 2048


class Autoencoder(nn.Module):
    """Images to latents and back. Module and parameter names mirror the public checkpoints.

    Latents are scaled as the U-Net takes them: (z - shift_factor) * scaling_factor, where z is the
    encoder's output.
    """

    block_out_channels: Sequence[int]  # width of each level, finest first; all but the last halve
    layers_per_block: int = 2  # resnets a level in the encoder; the decoder has one more
    latent_channels: int = 4
    out_channels: int = 3
    num_groups: int = 32
    scaling_factor: float = 0.18215  # about 1 / (standard deviation of z), for Stable Diffusion 1
    shift_factor: float = 0.0
    force_upcast: bool = True  # use float32 for float16, which overflows with these weights
    remat: bool = False  # recompute every resnet and attention in the backward pass
    dtype: Any = jnp.float32  # of the computation; parameters, statistics and output: float32

    def setup(self):
        dtype = self.computed_in
        moments = 2 * self.latent_channels
        self.encoder = Encoder(**self._fields(moments, self.layers_per_block, dtype))
        self.quant_conv = Conv(moments, (1, 1), dtype=dtype)
        self.post_quant_conv = Conv(self.latent_channels, (1, 1), dtype=dtype)
        self.decoder = Decoder(**self._fields(self.out_channels, self.layers_per_block + 1, dtype))

    @property
    def computed_in(self) -> jnp.dtype:
        """`dtype` after `force_upcast`."""
        dtype = jnp.dtype(self.dtype)
        return jnp.dtype("float32") if self.force_upcast and dtype == jnp.float16 else dtype

    @property
    def factor(self) -> int:
        """Image pixels per latent, along height or width."""
        return 2 ** (len(self.block_out_channels) - 1)

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Decodes the mean of what it encodes."""
        return self.decode(self.encode(images)[0])

    def encode(
        self, images: Float[Array, "b h w c"]
    ) -> tuple[Float[Array, "b h2 w2 z"], Float[Array, "b h2 w2 z"]]:
        """Mean and log-variance of the scaled latents; images are in [-1, 1].

        Raises `ValueError` unless height and width are multiples of `factor`.
        """
        stride = self.factor
        if images.shape[1] % stride or images.shape[2] % stride:
            raise ValueError(
                f"images must be a multiple of {stride} px (the total stride) each way, "
                f"got {images.shape[1]}x{images.shape[2]}"
            )
        moments = self.quant_conv(self.encoder(images)).astype(jnp.float32)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        mean = (mean - self.shift_factor) * self.scaling_factor
        # Scaling z by s adds 2 log(s) to its log-variance. The bounds are the public code's.
        return mean, jnp.clip(logvar, -30.0, 20.0) + 2 * math.log(self.scaling_factor)

    def decode(self, latents: Float[Array, "b h w z"]) -> Float[Array, "b h2 w2 c"]:
        """Images, about in [-1, 1]; `decode_one_by_one` needs less memory."""
        z = latents / self.scaling_factor + self.shift_factor
        return self.decoder(self.post_quant_conv(z)).astype(jnp.float32)

    def _fields(self, out_channels: int, layers: int, dtype: Any) -> dict[str, Any]:
        return dict(
            out_channels=out_channels,
            block_out_channels=self.block_out_channels,
            layers=layers,
            num_groups=self.num_groups,
            remat=self.remat,
            dtype=dtype,
        )


class Coder(nn.Module):
    """What encoder and decoder share; for the fields see `Autoencoder`."""

    out_channels: int
    block_out_channels: Sequence[int]
    layers: int  # resnets a level
    num_groups: int
    remat: bool = False
    dtype: Any = jnp.float32

    def _resnet(self, width: int, name: str) -> nn.Module:
        block = nn.remat(LatentResnet) if self.remat else LatentResnet
        return block(width, self.num_groups, EPSILON, self.dtype, name=name)

    def _middle(self, h: Array) -> Array:
        attention = nn.remat(PixelAttention) if self.remat else PixelAttention
        width = self.block_out_channels[-1]
        h = self._resnet(width, "mid_block_resnets_0")(h)
        h = attention(self.num_groups, self.dtype, name="mid_block_attentions_0")(h)
        return self._resnet(width, "mid_block_resnets_1")(h)

    def _conv(self, width: int, name: str) -> nn.Module:
        return Conv(width, (3, 3), dtype=self.dtype, name=name)

    def _out(self, h: Array) -> Array:
        h = GroupNorm(self.num_groups, self.dtype, EPSILON, name="conv_norm_out")(h)
        return self._conv(self.out_channels, "conv_out")(nn.silu(h))


class Encoder(Coder):
    """Images to the moments of latents, before the final 1x1 convolution."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 out"]:
        widths = self.block_out_channels
        h = self._conv(widths[0], "conv_in")(x)
        for level, width in enumerate(widths):
            for layer in range(self.layers):
                h = self._resnet(width, f"down_blocks_{level}_resnets_{layer}")(h)
            if level < len(widths) - 1:
                # Pads at the bottom and right only, unlike the U-Net's.
                name = f"down_blocks_{level}_downsamplers_0"
                h = Downsample((0, 1), self.dtype, name=name)(h)
        return self._out(self._middle(h))


class Decoder(Coder):
    """Latents, after the first 1x1 convolution, to images."""

    @nn.compact
    def __call__(self, z: Float[Array, "b h w z"]) -> Float[Array, "b h2 w2 out"]:
        widths = self.block_out_channels[::-1]  # the decoder starts at the coarsest level
        h = self._middle(self._conv(widths[0], "conv_in")(z))
        for level, width in enumerate(widths):
            for layer in range(self.layers):
                h = self._resnet(width, f"up_blocks_{level}_resnets_{layer}")(h)
            if level < len(widths) - 1:
                h = Upsample(self.dtype, name=f"up_blocks_{level}_upsamplers_0")(h)
        return self._out(h)


class PixelAttention(nn.Module):
    """Residual self-attention of one head over all pixels."""

    num_groups: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        norm = GroupNorm(self.num_groups, self.dtype, EPSILON, name="group_norm")
        tokens = norm(x.reshape(x.shape[0], -1, x.shape[-1]))  # [b, h * w, c]
        dense = lambda name: Dense(x.shape[-1], dtype=self.dtype, name=name)  # noqa: E731
        # [b, h * w, 1 head, c]
        query, key, value = (dense(name)(tokens)[:, :, None] for name in ("to_q", "to_k", "to_v"))
        out = _attend_in_pieces(query, key, value)[:, :, 0]
        return split_batch(x + dense("to_out_0")(out).reshape(x.shape))


def _attend_in_pieces(
    query: Float[Array, "b n heads d"],
    key: Float[Array, "b n heads d"],
    value: Float[Array, "b n heads d"],
) -> Float[Array, "b n heads d"]:
    # Exact: rows of the softmax are independent, so queries can be split and keys cannot.
    b, n, heads, d = query.shape
    if n <= PIECE:
        return attend(query, key, value)
    padded = jnp.pad(query, ((0, 0), (0, -n % PIECE), (0, 0), (0, 0)))
    pieces = padded.reshape(b, -1, PIECE, heads, d).swapaxes(0, 1)  # [pieces, b, PIECE, heads, d]
    out = jax.lax.map(lambda queries: attend(queries, key, value), pieces)
    return out.swapaxes(0, 1).reshape(padded.shape)[:, :n]


def decode_one_by_one(
    model: Autoencoder, variables: Variables, latents: Float[Array, "b h w z"]
) -> Float[Array, "b h2 w2 c"]:
    """As `Autoencoder.decode`, one image at a time on each device of the mesh in use.

    At 1,024 px the activations of one image take gigabytes; those of a batch may not fit.
    """
    return _one_by_one(lambda z: model.apply(variables, z, method="decode"), latents)


def encode_one_by_one(
    model: Autoencoder, variables: Variables, images: Float[Array, "b h w c"]
) -> tuple[Float[Array, "b h2 w2 z"], Float[Array, "b h2 w2 z"]]:
    """As `Autoencoder.encode`, one image at a time on each device of the mesh in use."""
    return _one_by_one(lambda x: model.apply(variables, x, method="encode"), images)


def _one_by_one(function: Callable[[Array], PyTree], batch: Float[Array, "b ..."]) -> Any:
    mesh = jax.sharding.get_abstract_mesh()
    devices = 1 if mesh.empty else mesh.shape["data"] * mesh.shape["fsdp"]
    devices = devices if batch.shape[0] % devices == 0 else 1
    # A device holds consecutive rows of the batch. Each step takes one row from every device, so
    # that all devices work and no rows move between them.
    steps = batch.reshape(devices, -1, *batch.shape[1:]).swapaxes(0, 1)  # [steps, devices, ...]
    results = jax.lax.map(function, steps)
    return jax.tree.map(lambda a: a.swapaxes(0, 1).reshape(-1, *a.shape[2:]), results)
