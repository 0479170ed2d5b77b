"""ResNet v1.5 (He et al. 2016; stride in the 3x3 convolution), for large and for small images."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float, Int

from classifiers.models.dropout import check_rates, drop_path
from classifiers.models.head import pooled_head
from classifiers.models.norm import Norm, make_norm
from launch.runtime.layers.layers import Conv, Dense, normalise_pixels
from launch.runtime.types import Array

# Stage sizes by depth: He et al. 2016, table 1.
SIZES = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class ResNet(nn.Module):
    """A residual network."""

    num_classes: int
    stage_sizes: Sequence[int]  # blocks per stage; every stage but the first halves the resolution
    width: int = 64  # channels of the first stage; they double from stage to stage
    bottleneck: bool = True  # blocks of 1x1, 3x3, 1x1 with four times the width, instead of two 3x3
    # One 3x3 convolution for images of some tens of pixels, no 7x7 with stride 2 and max-pool.
    small_stem: bool = False
    dropout: float = 0.0  # of the head's input
    auxiliary_batch_norm: bool = False  # see `norm.AuxiliaryBatchNorm`
    momentum: float = 0.9  # of the moving batch statistics
    pixels: str = "plain"  # what the weights expect, see `layers.PIXELS`
    dtype: Any = jnp.float32  # of the computation; parameters and statistics are float32

    def __post_init__(self) -> None:
        """Raises InputError for a rate outside [0, 1)."""
        check_rates(momentum=self.momentum, dropout=self.dropout)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b h w c"],
        train: bool = False,
        features: bool = False,
        domain: Int[Array, " b"] | None = None,
    ) -> Float[Array, "b classes"]:
        """Logits of images in [-1, 1]; sows `spatial` [b, h, w, d] and `features` [b, d].

        `features` returns what the head sees instead, [b, d]. `domain`, with
        `auxiliary_batch_norm`, is 0 for real and 1 for synthetic images; None means all real, in
        evaluation only.

        Raises:
            InputError: an auxiliary batch norm is to be trained without the domain.
        """
        norm = make_norm(
            train=train,
            momentum=self.momentum,
            dtype=self.dtype,
            auxiliary=self.auxiliary_batch_norm,
            domain=domain,
        )
        # Stem: to 1/4 of the resolution, or all of it for small images.
        kernel, stride = ((3, 3), 1) if self.small_stem else ((7, 7), 2)
        x = conv(self.width, kernel, stride, self.dtype, "stem_conv")(
            normalise_pixels(images, self.pixels)
        )
        x = nn.relu(norm(name="stem_norm")(x))
        if not self.small_stem:
            # Explicit padding: 'SAME' would shift it against the published networks.
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        # Each stage but the first halves the resolution and doubles the channels.
        for stage, size in enumerate(self.stage_sizes):
            for index in range(size):
                x = ResNetBlock(
                    width=self.width * 2**stage,
                    stride=2 if stage > 0 and index == 0 else 1,
                    bottleneck=self.bottleneck,
                    norm=norm,
                    dtype=self.dtype,
                    name=f"stage_{stage}_block_{index}",
                )(x, train)
        return pooled_head(self, x, train, features)


class ResNetBlock(nn.Module):
    """A residual block; its last norm starts at zero, so that it starts as the identity."""

    width: int  # channels of its 3x3 convolution
    stride: int  # of the first 3x3 convolution
    bottleneck: bool
    norm: Norm
    dtype: Any
    se_ratio: float = 0.0  # of `SqueezeExcite` at the end of the branch; 0 for none
    # Where the resolution is halved, the shortcut averages 2x2 pixels instead of taking one of
    # four (ResNet-D: He et al. 2019, figure 2c).
    average_shortcut: bool = False
    # So does the branch (CLIP: Radford et al. 2021, section 2.4).
    average_branch: bool = False
    drop_path: float = 0.0  # rate at which training drops the branch

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h2 w2 c2"]:
        out = self.width * (4 if self.bottleneck else 1)
        # (channels, kernel, stride) of each convolution on the branch.
        layers: tuple[tuple[int, int, int], ...]
        if self.bottleneck:
            layers = ((self.width, 1, 1), (self.width, 3, self.stride), (out, 1, 1))
        else:
            layers = ((self.width, 3, self.stride), (out, 3, 1))
        h = x
        # The branch: convolution, norm and ReLU each, without a ReLU before the sum.
        for index, (channels, kernel, stride) in enumerate(layers):
            last = index == len(layers) - 1
            # The convolution keeps the size, the pool halves it.
            averaged = self.average_branch and stride > 1
            step = 1 if averaged else stride
            h = conv(channels, (kernel, kernel), step, self.dtype, f"conv_{index}")(h)
            scale_init = nn.initializers.zeros if last else nn.initializers.ones
            h = self.norm(scale_init=scale_init, name=f"norm_{index}")(h)
            h = h if last else nn.relu(h)
            h = nn.avg_pool(h, (2, 2), (2, 2)) if averaged else h
        if self.se_ratio:
            h = SqueezeExcite(self.se_ratio, self.dtype, name="squeeze_excite")(h)
        h = drop_path(h, self.drop_path, train)
        return nn.relu(h + (x if x.shape == h.shape else self._shortcut(x, out)))

    def _shortcut(self, x: Float[Array, "b h w c"], out: int) -> Float[Array, "b h2 w2 c2"]:
        stride = self.stride
        if self.average_shortcut and stride > 1:
            # What hangs over the edge of an odd size does not count.
            padding, stride = [(0, size % 2) for size in x.shape[1:3]], 1
            x = nn.avg_pool(x, (2, 2), (2, 2), padding, count_include_pad=False)
        x = conv(out, (1, 1), stride, self.dtype, "shortcut_conv")(x)
        return self.norm(name="shortcut_norm")(x)


class SqueezeExcite(nn.Module):
    """Scales channels by what all pixels together say (Hu et al. 2018, section 3)."""

    ratio: float  # channels between its two layers, as a share of the input's
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        channels = x.shape[-1]
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        h = x.mean((1, 2))  # squeeze: [b, c]
        width = max(1, int(self.ratio * channels))
        h = nn.relu(Dense(width, kernel_init=init, dtype=self.dtype, name="reduce")(h))
        h = Dense(channels, kernel_init=init, dtype=self.dtype, name="expand")(h)
        return x * nn.sigmoid(h)[:, None, None]  # excite


def conv(channels: int, kernel: tuple[int, int], stride: int, dtype: Any, name: str) -> nn.Module:
    """A convolution without bias; He et al. 2015, Eq. 14 for its initial scale."""
    # Explicit padding: 'SAME' would shift strided convolutions against the published networks.
    padding = [((k - 1) // 2, (k - 1) // 2) for k in kernel]
    init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    return Conv(
        channels,
        kernel,
        (stride, stride),
        padding,
        use_bias=False,
        kernel_init=init,
        dtype=dtype,
        name=name,
    )
