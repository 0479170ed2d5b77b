"""Rules by which measures bring images to the size and range of their networks; they disagree.

Each is linear and separable: one matrix for the rows, one for the columns.
"""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Num, UInt8

from input_pipeline.augment import pillow
from launch.errors import InputError
from launch.runtime.layers.precision import products_of
from launch.runtime.types import Array

# tf1: torch-fidelity and ADM's evaluator. pytorch_fid: pytorch-fid. clean: clean-fid's own mode.
INCEPTION_RULES = ("tf1", "pytorch_fid", "clean")
# torch: EDM2's, not rounded. pil: dgm-eval's, rounded to grey levels after columns and after rows.
DINOV2_RULES = ("torch", "pil")


def check_rule(rule: str, rules: tuple[str, ...]) -> None:
    """Looks whether a rule is one of those that there are.

    Raises:
        InputError: it is not.
    """
    if rule not in rules:
        raise InputError(f"rule must be one of {', '.join(rules)}, got {rule!r}; choose one")


def in_colour(images: Num[Array, "b h w c"]) -> Num[Array, "b h w 3"]:
    """Grey images with their channel thrice, as the measures' own tools open them."""
    if images.shape[-1] not in (1, 3):
        raise InputError(
            f"images must have 1 channel (grey) or 3, got {images.shape[-1]}; convert them"
        )
    return jnp.broadcast_to(images, (*images.shape[:-1], 3))


def inception_pixels(
    images: UInt8[Array, "b h w c"], rule: str, size: int = 299, dtype: Any = jnp.float32
) -> Float[Array, "b size size 3"]:
    """What Inception sees of images.

    Args:
        images: grey or in colour.
        rule: one of `INCEPTION_RULES`.
        size: of the network's images, pixels each way.
        dtype: of the computation, and of the result.

    Raises:
        InputError: there is no such rule, or the images have neither 1 nor 3 channels.
    """
    check_rule(rule, INCEPTION_RULES)
    x = in_colour(images.astype(dtype))
    if rule == "clean":
        x = jnp.clip(resized(x, size, "bicubic"), 0, 255)
    else:
        x = resized(x, size, "corners" if rule == "tf1" else "centres")
    return x / 127.5 - 1 if rule == "pytorch_fid" else (x - 128) / 128


def dinov2_pixels(
    images: UInt8[Array, "b h w c"], rule: str, size: int
) -> Float[Array, "b size size 3"]:
    """What DINOv2 sees of images, before it subtracts the mean colour of ImageNet.

    Args:
        images: grey or in colour.
        rule: one of `DINOV2_RULES`; both are bicubic, and smooth where images become smaller.
        size: of the network's images, pixels each way.

    Returns:
        In [-1, 1], with 'torch' a little more.

    Raises:
        InputError: there is no such rule, or the images have neither 1 nor 3 channels.
    """
    check_rule(rule, DINOV2_RULES)
    if rule == "pil":
        x = _resized_in_grey_levels(in_colour(images), size).astype(jnp.float32)
    else:
        x = resized(in_colour(images).astype(jnp.float32), size, "bicubic")
    return x / 127.5 - 1


def _resized_in_grey_levels(x: UInt8[Array, "b h w c"], size: int) -> Array:
    """`resize_as_pillow` of a batch, on the device; int32 [b, size, size, c]."""
    rows, columns = (
        jnp.asarray(pillow.whole_weights(old, size, "bicubic")) for old in x.shape[1:3]
    )

    def rounded(sums: Array) -> Array:
        return jnp.clip((sums + (1 << (pillow.BITS - 1))) >> pillow.BITS, 0, 255)

    y = rounded(jnp.einsum("pw,bhwc->bhpc", columns, x.astype(jnp.int32)))
    return rounded(jnp.einsum("qh,bhpc->bqpc", rows, y))


def resized(x: Float[Array, "b h w c"], size: int, method: str) -> Float[Array, "b size size c"]:
    """Images of another size; their aspect is not kept.

    Args:
        x: the images.
        size: pixels each way.
        method: 'corners' is bilinear between pixels that lie at whole numbers (TensorFlow 1),
            'centres' bilinear between pixels that lie at halves (PyTorch); neither is smoothed
            where images become smaller. 'bicubic' is (Keys 1981, a = -0.5; Pillow's).
    """
    rows, columns = (
        jnp.asarray(_matrix(old, size, method, np.dtype(x.dtype).name)) for old in x.shape[1:3]
    )
    with products_of(x.dtype):
        x = jnp.einsum("pw,bhwc->bhpc", columns, x)  # Pillow begins with the columns as well
        return jnp.einsum("qh,bhpc->bqpc", rows, x)


@functools.cache
def _matrix(old: int, new: int, method: str, dtype: str) -> Float[np.ndarray, "new old"]:
    """What each new pixel takes of each old one."""
    if method == "bicubic":
        return pillow.weights(old, new, "bicubic").astype(dtype)
    # The tools find positions in the precision in which they resize; they are continued beyond
    # the border by the pixel there.
    kind = np.dtype(dtype).type
    at = np.arange(new).astype(dtype)
    if method == "corners":
        at = at * kind(np.float32(old / new))
    else:
        at = np.maximum((at + kind(0.5)) * kind(old / new) - kind(0.5), kind(0))
    low = np.minimum(at.astype(int), old - 1)
    part = at - low.astype(dtype)
    weights = np.zeros((new, old), dtype)
    np.add.at(weights, (np.arange(new), low), 1 - part)
    np.add.at(weights, (np.arange(new), np.minimum(low + 1, old - 1)), part)
    return weights
