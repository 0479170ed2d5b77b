"""ResNet v1.5 (He et al. 2016; stride in the 3x3 convolution), for large and for small images."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from classifiers.models.layers import Conv, Dense, normalise_pixels


class ResNet(nn.Module):
    """A residual network.

    Attributes:
        num_classes: of the head.
        stage_sizes: blocks a stage; every stage but the first halves the resolution.
        width: channels of the first stage; they double from stage to stage.
        bottleneck: blocks of 1x1, 3x3, 1x1 with four times the width, instead of two 3x3.
        small_stem: one 3x3 convolution for images of some tens of pixels, instead of a 7x7 with
            stride 2 and a max-pool.
        momentum: of the moving batch statistics.
        dropout: rate before the head.
        pixels: what the weights expect, see `layers.PIXELS`.
        dtype: of the computation; parameters and statistics are float32.
    """

    num_classes: int
    stage_sizes: Sequence[int]
    width: int = 64
    bottleneck: bool = True
    small_stem: bool = False
    momentum: float = 0.9
    dropout: float = 0.0
    pixels: str = "plain"
    dtype: Any = jnp.float32

    @property
    def stochastic(self) -> bool:
        """Whether training needs the random numbers `dropout`."""
        return self.dropout > 0

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w c"], train: bool = False, features: bool = False
    ) -> Float[Array, "b classes"]:
        """Logits.

        Args:
            images: in [-1, 1].
            train: use and update the statistics of the batch.
            features: return what the head sees instead, [b, d].
        """
        norm = functools.partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=self.momentum,
            epsilon=1e-5,
            dtype=self.dtype,
        )
        kernel, stride = ((3, 3), 1) if self.small_stem else ((7, 7), 2)
        x = _conv(self.width, kernel, stride, self.dtype, "stem_conv")(
            normalise_pixels(images, self.pixels)
        )
        x = nn.relu(norm(name="stem_norm")(x))
        if not self.small_stem:
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage, size in enumerate(self.stage_sizes):
            for index in range(size):
                x = ResNetBlock(
                    width=self.width * 2**stage,
                    stride=2 if stage > 0 and index == 0 else 1,
                    bottleneck=self.bottleneck,
                    norm=norm,
                    dtype=self.dtype,
                    name=f"stage_{stage}_block_{index}",
                )(x)
        x = x.mean(axis=(1, 2)).astype(jnp.float32)
        if features:
            return x
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return Dense(self.num_classes, kernel_init=nn.initializers.normal(0.01), name="head")(x)


class ResNetBlock(nn.Module):
    """A residual block; its last norm starts at zero, so that it starts as the identity."""

    width: int
    stride: int
    bottleneck: bool
    norm: Callable[..., nn.Module]
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        """Output of the block."""
        out = self.width * (4 if self.bottleneck else 1)
        # (channels, kernel, stride) of each convolution on the branch.
        if self.bottleneck:
            layers = ((self.width, 1, 1), (self.width, 3, self.stride), (out, 1, 1))
        else:
            layers = ((self.width, 3, self.stride), (out, 3, 1))
        h = x
        for index, (channels, kernel, stride) in enumerate(layers):
            last = index == len(layers) - 1
            h = _conv(channels, (kernel, kernel), stride, self.dtype, f"conv_{index}")(h)
            scale_init = nn.initializers.zeros if last else nn.initializers.ones
            h = self.norm(scale_init=scale_init, name=f"norm_{index}")(h)
            h = h if last else nn.relu(h)
        if x.shape != h.shape:
            x = _conv(out, (1, 1), self.stride, self.dtype, "shortcut_conv")(x)
            x = self.norm(name="shortcut_norm")(x)
        return nn.relu(x + h)


def _conv(channels: int, kernel: tuple[int, int], stride: int, dtype: Any, name: str) -> Conv:
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
