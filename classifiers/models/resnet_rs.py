"""ResNet-RS (Bello et al. 2021, "Revisiting ResNets: Improved Training and Scaling Strategies")."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float, Int

from classifiers.models.dropout import check_rates
from classifiers.models.head import pooled_head
from classifiers.models.norm import Norm, make_norm
from classifiers.models.resnet import ResNetBlock, conv
from launch.runtime.layers.layers import normalise_pixels
from launch.runtime.types import Array

# Blocks per stage by depth.
SIZES = {
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
    270: (4, 29, 53, 4),
    350: (4, 36, 72, 4),
    420: (4, 44, 87, 4),
}


class ResNetRS(nn.Module):
    """A ResNet with ResNet-D's stem and shortcuts and squeeze-and-excitation, without max-pool.

    It divides the resolution by 32, rounding up.
    """

    num_classes: int
    stage_sizes: Sequence[int]  # blocks per stage; every stage but the first halves the resolution
    width: int = 64  # channels of the first stage; they double from stage to stage
    se_ratio: float = 0.25  # of `SqueezeExcite`
    drop_path: float = 0.0  # rate of the last stage; earlier ones have less
    dropout: float = 0.25  # of the head's input
    auxiliary_batch_norm: bool = False  # see `norm.AuxiliaryBatchNorm`
    # Of the moving batch statistics; published networks have 0, and average all variables.
    momentum: float = 0.9
    pixels: str = "plain"  # what the weights expect, see `layers.PIXELS`
    dtype: Any = jnp.float32  # of the computation; parameters, statistics and logits are float32

    def __post_init__(self) -> None:
        """Raises InputError for a rate outside [0, 1)."""
        check_rates(
            momentum=self.momentum,
            dropout=self.dropout,
            drop_path=self.drop_path,
            se_ratio=self.se_ratio,
        )
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b h w c"],
        train: bool = False,
        features: bool = False,
        domain: Int[Array, " b"] | None = None,
    ) -> Float[Array, "b classes"]:
        """Logits; arguments and errors are those of `ResNet`."""
        norm = make_norm(
            train=train,
            momentum=self.momentum,
            dtype=self.dtype,
            auxiliary=self.auxiliary_batch_norm,
            domain=domain,
        )
        x = self._stem(normalise_pixels(images, self.pixels), norm)
        # The rate rises linearly with the stage, the stem being the first.
        stages = len(self.stage_sizes)
        for stage, size in enumerate(self.stage_sizes):
            for index in range(size):
                x = ResNetBlock(
                    width=self.width * 2**stage,
                    stride=2 if stage > 0 and index == 0 else 1,
                    bottleneck=True,
                    norm=norm,
                    dtype=self.dtype,
                    se_ratio=self.se_ratio,
                    average_shortcut=True,
                    drop_path=self.drop_path * (stage + 2) / (stages + 1),
                    name=f"stage_{stage}_block_{index}",
                )(x, train)
        return pooled_head(self, x, train, features)

    def _stem(self, x: Float[Array, "b h w c"], norm: Norm) -> Float[Array, "b h4 w4 d"]:
        # ResNet-D (He et al. 2019, figure 2b): three 3x3 for one 7x7; the last is for the max-pool.
        half = self.width // 2
        layers = ((half, 2), (half, 1), (self.width, 1), (self.width, 2))
        for index, (channels, stride) in enumerate(layers):
            x = conv(channels, (3, 3), stride, self.dtype, f"stem_conv_{index}")(x)
            x = nn.relu(norm(name=f"stem_norm_{index}")(x))
        return x
