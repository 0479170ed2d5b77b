"""Inception-v3 as it was published in December 2015, whose features FID and its kin compare.

Szegedy et al. 2016, with the differences of that graph: 1008 outputs, average pools that leave the
border out, and a max-pool in the last block. Batch norms are folded into the convolutions.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from launch.runtime.layers.layers import Conv, Dense
from launch.runtime.types import Array

SIZE = 299  # of its images, pixels each way
# Channels of mixed_6/conv that ADM's sFID compares.
SPATIAL_CHANNELS = 7


class Inception(nn.Module):
    """Features, spatial features and logits of images."""

    # Of the first convolution; others are in proportion; 32 is the published network.
    width: int = 32
    num_classes: int = 1008
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> dict[str, Array]:
        """Every tap, after a ReLU but for logits; images come from `pixel_rules.inception_pixels`.

        features [b, 2048]; features_64, features_192 and features_768, means over pixels after the
        blocks of so many channels; spatial [b, 17, 17, 7], of ADM's sFID; logits [b, classes] and,
        for the inception score, logits_unbiased, which are without the bias.
        """
        taps: dict[str, Array] = {}
        # Stem: 299 to 35 pixels. Names and paddings of layers are TensorFlow's.
        x = self._conv(images, "Conv2d_1a_3x3", 32, 3, stride=2, padding="VALID")
        x = self._conv(x, "Conv2d_2a_3x3", 32, 3, padding="VALID")
        x = self._conv(x, "Conv2d_2b_3x3", 64, 3)
        x = _halved(x)
        taps["features_64"] = _mean(x)
        x = self._conv(x, "Conv2d_3b_1x1", 80)
        x = self._conv(x, "Conv2d_4a_3x3", 192, 3, padding="VALID")
        x = _halved(x)
        taps["features_192"] = _mean(x)
        # 35 x 35, then 17 x 17 after 6a.
        for name, pool_width in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = self._block_a(x, name, pool_width)
        x = self._block_b(x, "Mixed_6a")
        for name, inner in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            x, first = self._block_c(x, f"Mixed_{name}", inner)
            if name == "6d":  # the node that TensorFlow calls mixed_6/conv
                taps["spatial"] = first[..., :SPATIAL_CHANNELS]
        taps["features_768"] = _mean(x)
        # 8 x 8. The two last blocks differ in their pools: that is the quirk of the 2015 graph.
        x = self._block_d(x, "Mixed_7a")
        x = self._block_e(x, "Mixed_7b", self._averaged)
        x = self._block_e(x, "Mixed_7c", self._largest)
        x = taps["features"] = _mean(x)
        # The inception score of the reference code leaves out the bias.
        head = Dense(self.num_classes, use_bias=False, dtype=self.dtype, name="fc")
        bias = self.param("fc_bias", nn.initializers.zeros, (self.num_classes,))
        taps["logits_unbiased"] = head(x)
        taps["logits"] = taps["logits_unbiased"] + bias.astype(self.dtype)[None]
        return taps

    def _conv(
        self,
        x: Array,
        name: str,
        width: int,
        window: int | tuple[int, int] = 1,
        stride: int = 1,
        padding: str = "SAME",
    ) -> Array:
        window = (window, window) if isinstance(window, int) else window
        return nn.relu(self._linear(width, window, stride, padding, name)(x))

    def _linear(
        self, width: int, window: tuple[int, int], stride: int, padding: str, name: str
    ) -> nn.Module:
        width = width * self.width // 32
        return Conv(width, window, (stride, stride), padding, dtype=self.dtype, name=name)

    def _chain(self, x: Array, block: str, *layers: tuple[Any, ...]) -> Array:
        """Convolutions of a branch one after the other: name, width, window and options."""
        for name, width, window, *options in layers:
            x = self._conv(x, f"{block}_{name}", width, window, *options)
        return x

    def _block_a(self, x: Array, block: str, pool_width: int) -> Array:
        branches = [
            self._chain(x, block, ("branch1x1", 64, 1)),
            self._chain(x, block, ("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)),
            self._double(x, block),
            self._averaged(x, block, pool_width),
        ]
        return jnp.concatenate(branches, axis=-1)

    def _averaged(self, x: Array, block: str, width: int) -> Array:
        """Convolves, then averages: the same as the other way round, on fewer channels."""
        # Both are linear. Weights of an average add up to 1, so the bias may come before it.
        x = self._linear(width, (1, 1), 1, "SAME", f"{block}_branch_pool")(x)
        # The 2015 graph leaves the border out of its averages.
        return nn.relu(nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False))

    def _largest(self, x: Array, block: str, width: int) -> Array:
        return self._conv(nn.max_pool(x, (3, 3), padding="SAME"), f"{block}_branch_pool", width)

    def _double(self, x: Array, block: str, *last: Any) -> Array:
        layers = [(1, 64, 1), (2, 96, 3), (3, 96, 3, *last)]
        return self._chain(x, block, *((f"branch3x3dbl_{n}", *rest) for n, *rest in layers))

    def _block_b(self, x: Array, block: str) -> Array:
        branches = [
            self._chain(x, block, ("branch3x3", 384, 3, 2, "VALID")),
            self._double(x, block, 2, "VALID"),
            _halved(x),
        ]
        return jnp.concatenate(branches, axis=-1)

    def _block_c(self, x: Array, block: str, inner: int) -> tuple[Array, Array]:
        """The block, and its first branch, which sFID taps."""
        first = self._chain(x, block, ("branch1x1", 192, 1))
        across, down = (1, 7), (7, 1)
        single = [(inner, 1), (inner, across), (192, down)]
        double = [(inner, 1), (inner, down), (inner, across), (inner, down), (192, across)]
        branches = [
            self._chain(x, block, *((f"{name}_{n}", *rest) for n, rest in enumerate(layers, 1)))
            for name, layers in (("branch7x7", single), ("branch7x7dbl", double))
        ]
        branches.append(self._averaged(x, block, 192))
        return jnp.concatenate([first, *branches], axis=-1), first

    def _block_d(self, x: Array, block: str) -> Array:
        halving = (3, 2, "VALID")
        layers = [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, *halving)]
        branches = [
            self._chain(x, block, ("branch3x3_1", 192, 1), ("branch3x3_2", 320, *halving)),
            self._chain(x, block, *((f"branch7x7x3_{n}", *of) for n, of in enumerate(layers, 1))),
            _halved(x),
        ]
        return jnp.concatenate(branches, axis=-1)

    def _block_e(self, x: Array, block: str, pool: Any) -> Array:
        single = self._chain(x, block, ("branch3x3_1", 384, 1))
        double = self._chain(x, block, ("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3))
        branches = [self._chain(x, block, ("branch1x1", 320, 1))]
        for inner, name in ((single, "branch3x3_2"), (double, "branch3x3dbl_3")):
            branches += [
                self._chain(inner, block, (f"{name}{letter}", 384, window))
                for letter, window in (("a", (1, 3)), ("b", (3, 1)))
            ]
        branches.append(pool(x, block, 192))
        return jnp.concatenate(branches, axis=-1)


def _halved(x: Array) -> Array:
    return nn.max_pool(x, (3, 3), (2, 2))


def _mean(x: Array) -> Float[Array, "b c"]:
    return x.mean((1, 2))
