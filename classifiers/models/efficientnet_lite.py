"""EfficientNet-Lite (Tan & Le 2019, without squeeze-and-excitation, and with ReLU6 for swish)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from classifiers.models.dropout import check_rates
from classifiers.models.head import pooled_head
from classifiers.models.norm import Norm, make_norm
from launch.runtime.layers.layers import Conv, normalise_pixels
from launch.runtime.types import Array

# Tan & Le 2019, table 1 (B0), a row per stage: how much a block widens inside, its channels if the
# stem has 32, the stride of the first block, and the window.
STAGES = (
    (1, 16, 1, 3),
    (6, 24, 2, 3),
    (6, 40, 2, 5),
    (6, 80, 2, 3),
    (6, 112, 1, 5),
    (6, 192, 2, 5),
    (6, 320, 1, 3),
)
_STEM, _HEAD = 32, 1280


class EfficientNetLite(nn.Module):
    """A network of inverted bottlenecks (MobileNetV2's)."""

    num_classes: int
    stage_sizes: Sequence[int] = (1, 2, 2, 3, 3, 4, 1)  # blocks of the first rows of `STAGES`
    width: int = _STEM  # channels of the stem; all others are in proportion
    dropout: float = 0.0  # of the head's input
    momentum: float = 0.99  # of the moving batch statistics
    pixels: str = "plain"  # what the weights expect, see `layers.PIXELS`
    dtype: Any = jnp.float32  # of the computation; parameters, statistics and logits are float32

    def __post_init__(self) -> None:
        """Raises InputError for a rate outside [0, 1)."""
        check_rates(momentum=self.momentum, dropout=self.dropout)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w c"], train: bool = False, features: bool = False
    ) -> Float[Array, "b classes"]:
        """Logits of images in [-1, 1]; sows `spatial` [b, h, w, d] and `features` [b, d].

        `features` returns what the head sees instead, [b, d].
        """
        # The published epsilon.
        norm = make_norm(train=train, momentum=self.momentum, dtype=self.dtype, epsilon=1e-3)
        x = normalise_pixels(images, self.pixels)
        x = conv(self.width, 3, 2, self.dtype, "stem_conv")(x)
        x = nn.relu6(norm(name="stem_norm")(x))
        # Blocks are numbered through, as the published weights number them.
        index = 0
        for size, (widening, channels, stride, window) in zip(
            self.stage_sizes, STAGES[: len(self.stage_sizes)], strict=True
        ):
            for number in range(size):
                x = Block(
                    widening=widening,
                    width=channels * self.width // _STEM,
                    stride=stride if number == 0 else 1,
                    window=window,
                    norm=norm,
                    dtype=self.dtype,
                    name=f"block_{index}",
                )(x)
                index += 1
        x = conv(_HEAD * self.width // _STEM, 1, 1, self.dtype, "head_conv")(x)
        x = nn.relu6(norm(name="head_norm")(x))
        return pooled_head(self, x, train, features)


class Block(nn.Module):
    """Widens, convolves each channel by itself, narrows, and is added to its input."""

    widening: int  # factor of the channels inside
    width: int  # channels out
    stride: int  # of the depthwise convolution
    window: int  # of the depthwise convolution
    norm: Norm
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 width"]:
        inside = x.shape[-1] * self.widening
        y = x
        if self.widening > 1:
            y = conv(inside, 1, 1, self.dtype, "expand_conv")(y)
            y = nn.relu6(self.norm(name="expand_norm")(y))
        y = conv(inside, self.window, self.stride, self.dtype, "depthwise_conv", inside)(y)
        y = nn.relu6(self.norm(name="depthwise_norm")(y))
        y = conv(self.width, 1, 1, self.dtype, "project_conv")(y)
        y = self.norm(name="project_norm")(y)
        # No activation after the projection: a linear bottleneck (Sandler et al. 2018).
        return x + y if x.shape == y.shape else y


def conv(width: int, window: int, stride: int, dtype: Any, name: str, groups: int = 1) -> nn.Module:
    """A convolution without bias, padded as TensorFlow does: more at the end than at the start."""
    return Conv(
        width,
        (window, window),
        (stride, stride),
        "SAME",
        use_bias=False,
        feature_group_count=groups,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        dtype=dtype,
        name=name,
    )
