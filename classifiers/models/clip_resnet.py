"""The ResNets of CLIP (Radford et al. 2021, section 2.4)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from classifiers.models.attention_pool import MeanPixelPool
from classifiers.models.norm import Norm, make_norm
from classifiers.models.resnet import ResNetBlock, conv
from launch.runtime.layers.layers import normalise_pixels
from launch.runtime.types import Array

_HEAD_WIDTH = 64
# Channels of the last stage per channel of the first convolutions.
_WIDENING = 32


class ClipResNet(nn.Module):
    """A ResNet with a stem of three convolutions, which averages where others take strides."""

    stage_sizes: Sequence[int]  # blocks per stage
    out_width: int  # of the features, in the space of texts
    width: int = 64  # channels of the first stage; they double from stage to stage
    momentum: float = 0.9  # of the moving batch statistics
    pixels: str = "clip"  # what the weights expect, see `layers.PIXELS`
    dtype: Any = jnp.float32  # of the computation; parameters and statistics are float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w c"], train: bool = False, features: bool = True
    ) -> Float[Array, "b out"]:
        """Features of images in [-1, 1]; sows `spatial` [b, h, w, d] and `features` [b, out].

        Images have the one size that positions were learned for. `features` changes nothing, since
        there are no logits.
        """
        norm = make_norm(train=train, momentum=self.momentum, dtype=self.dtype)
        x = self._stem(normalise_pixels(images, self.pixels), norm)
        for stage, size in enumerate(self.stage_sizes):
            for index in range(size):
                x = ResNetBlock(
                    width=self.width * 2**stage,
                    stride=2 if stage > 0 and index == 0 else 1,
                    bottleneck=True,
                    norm=norm,
                    dtype=self.dtype,
                    average_shortcut=True,
                    average_branch=True,
                    name=f"stage_{stage}_block_{index}",
                )(x, train)
        self.sow("intermediates", "spatial", x)
        num_heads = max(1, self.width * _WIDENING // _HEAD_WIDTH)  # 64 channels a head
        pool = MeanPixelPool(num_heads, self.out_width, self.dtype, name="attention_pool")
        pooled = pool(x)
        self.sow("intermediates", "features", pooled)
        return pooled

    def _stem(self, x: Float[Array, "b h w c"], norm: Norm) -> Float[Array, "b h4 w4 d"]:
        half = self.width // 2
        for index, (channels, stride) in enumerate(((half, 2), (half, 1), (self.width, 1))):
            x = conv(channels, (3, 3), stride, self.dtype, f"stem_conv_{index}")(x)
            x = nn.relu(norm(name=f"stem_norm_{index}")(x))
        return nn.avg_pool(x, (2, 2), (2, 2))  # [b, h / 4, w / 4, d]
