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
# Queries that attend at a time: of 1,024 px the weights of all would be a gigabyte an image.
PIECE = 2048


class Autoencoder(nn.Module):
    """Images to latents and back. Module and parameter names mirror the public checkpoints.

    Latents are scaled as the U-Net takes them: (z - shift_factor) * scaling_factor of what the
    encoder gives.

    Attributes:
        block_out_channels: width of each level, from the finest; each but the last halves.
        layers_per_block: resnets a level of the encoder (one more in the decoder).
        latent_channels: of the latents.
        out_channels: of the images.
        num_groups: groups of every group norm.
        scaling_factor: see above.
        shift_factor: see above.
        force_upcast: float16 overflows in these weights: float32 takes its place.
        remat: whether every resnet and attention keeps only its inputs for the backward pass.
        dtype: of the computation; parameters, statistics and output are float32.
    """

    block_out_channels: Sequence[int]
    layers_per_block: int = 2
    latent_channels: int = 4
    out_channels: int = 3
    num_groups: int = 32
    scaling_factor: float = 0.18215
    shift_factor: float = 0.0
    force_upcast: bool = True
    remat: bool = False
    dtype: Any = jnp.float32

    def setup(self):
        dtype = self.computed_in
        moments = 2 * self.latent_channels
        self.encoder = Encoder(**self._fields(moments, self.layers_per_block, dtype))
        self.quant_conv = Conv(moments, (1, 1), dtype=dtype)
        self.post_quant_conv = Conv(self.latent_channels, (1, 1), dtype=dtype)
        self.decoder = Decoder(**self._fields(self.out_channels, self.layers_per_block + 1, dtype))

    @property
    def computed_in(self) -> jnp.dtype:
        """The type of the computation, after `force_upcast`."""
        dtype = jnp.dtype(self.dtype)
        return jnp.dtype("float32") if self.force_upcast and dtype == jnp.float16 else dtype

    @property
    def factor(self) -> int:
        """Pixels of an image for one of the latents, each way."""
        return 2 ** (len(self.block_out_channels) - 1)

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Decodes the mean of what it encodes."""
        return self.decode(self.encode(images)[0])

    def encode(
        self, images: Float[Array, "b h w c"]
    ) -> tuple[Float[Array, "b h2 w2 z"], Float[Array, "b h2 w2 z"]]:
        """Mean and log-variance of the latents.

        Args:
            images: in [-1, 1].

        Raises:
            ValueError: the images cannot be halved as often as the levels ask for.
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
    """What encoder and decoder have in common.

    Attributes:
        out_channels: of the output.
        block_out_channels: width of each level, from the finest.
        layers: resnets a level.
        num_groups: groups of every group norm.
        remat: see `Autoencoder`.
        dtype: of the computation.
    """

    out_channels: int
    block_out_channels: Sequence[int]
    layers: int
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
    """Images to the moments of latents, before the last 1x1 convolution."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 out"]:
        widths = self.block_out_channels
        h = self._conv(widths[0], "conv_in")(x)
        for level, width in enumerate(widths):
            for layer in range(self.layers):
                h = self._resnet(width, f"down_blocks_{level}_resnets_{layer}")(h)
            if level < len(widths) - 1:
                # Behind only, unlike the U-Net's.
                name = f"down_blocks_{level}_downsamplers_0"
                h = Downsample((0, 1), self.dtype, name=name)(h)
        return self._out(self._middle(h))


class Decoder(Coder):
    """Latents, after their first 1x1 convolution, to images."""

    @nn.compact
    def __call__(self, z: Float[Array, "b h w z"]) -> Float[Array, "b h2 w2 out"]:
        widths = self.block_out_channels[::-1]
        h = self._middle(self._conv(widths[0], "conv_in")(z))
        for level, width in enumerate(widths):
            for layer in range(self.layers):
                h = self._resnet(width, f"up_blocks_{level}_resnets_{layer}")(h)
            if level < len(widths) - 1:
                h = Upsample(self.dtype, name=f"up_blocks_{level}_upsamplers_0")(h)
        return self._out(h)


class PixelAttention(nn.Module):
    """Self-attention of one head over all pixels, residual.

    Attributes:
        num_groups: of its norm.
        dtype: of the computation.
    """

    num_groups: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        norm = GroupNorm(self.num_groups, self.dtype, EPSILON, name="group_norm")
        tokens = norm(x.reshape(x.shape[0], -1, x.shape[-1]))  # [b, h * w, c]
        dense = lambda name: Dense(x.shape[-1], dtype=self.dtype, name=name)  # noqa: E731
        query, key, value = (dense(name)(tokens)[:, :, None] for name in ("to_q", "to_k", "to_v"))
        out = _attend_in_pieces(query, key, value)[:, :, 0]
        return split_batch(x + dense("to_out_0")(out).reshape(x.shape))


def _attend_in_pieces(
    query: Float[Array, "b n heads d"],
    key: Float[Array, "b n heads d"],
    value: Float[Array, "b n heads d"],
) -> Float[Array, "b n heads d"]:
    b, n, heads, d = query.shape
    if n <= PIECE:
        return attend(query, key, value)
    padded = jnp.pad(query, ((0, 0), (0, -n % PIECE), (0, 0), (0, 0)))
    pieces = padded.reshape(b, -1, PIECE, heads, d).swapaxes(0, 1)
    out = jax.lax.map(lambda queries: attend(queries, key, value), pieces)
    return out.swapaxes(0, 1).reshape(padded.shape)[:, :n]


def decode_one_by_one(
    model: Autoencoder, variables: Variables, latents: Float[Array, "b h w z"]
) -> Float[Array, "b h2 w2 c"]:
    """As `Autoencoder.decode`, one image at a time on each device of the mesh in use.

    At 1,024 px one image's activations take gigabytes, which a batch may not have.
    """
    return _one_by_one(lambda z: model.apply(variables, z, method="decode"), latents)


def encode_one_by_one(
    model: Autoencoder, variables: Variables, images: Float[Array, "b h w c"]
) -> tuple[Float[Array, "b h2 w2 z"], Float[Array, "b h2 w2 z"]]:
    """As `Autoencoder.encode`, in the memory of one image on each device of the mesh in use."""
    return _one_by_one(lambda x: model.apply(variables, x, method="encode"), images)


def _one_by_one(function: Callable[[Array], PyTree], batch: Float[Array, "b ..."]) -> Any:
    mesh = jax.sharding.get_abstract_mesh()
    devices = 1 if mesh.empty else mesh.shape["data"] * mesh.shape["fsdp"]
    devices = devices if batch.shape[0] % devices == 0 else 1
    # What a device holds are neighbours: one of each device's makes a step.
    steps = batch.reshape(devices, -1, *batch.shape[1:]).swapaxes(0, 1)
    results = jax.lax.map(function, steps)
    return jax.tree.map(lambda a: a.swapaxes(0, 1).reshape(-1, *a.shape[2:]), results)
