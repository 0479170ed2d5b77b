"""How measures bring images to the size and range of their networks; the tools disagree.

Every rule is linear and separable: one matrix for the rows, one for the columns.
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

# tf1: torch-fidelity and ADM's evaluator; pytorch_fid: pytorch-fid; clean: clean-fid's own.
INCEPTION_RULES = ("tf1", "pytorch_fid", "clean")
# torch: EDM2's, not rounded; pil: dgm-eval's, rounded to grey levels after columns and rows.
DINOV2_RULES = ("torch", "pil")


def check_rule(rule: str, rules: tuple[str, ...]) -> None:
    """Raises InputError for a rule that is not one of `rules`."""
    if rule not in rules:
        raise InputError(f"rule must be one of {', '.join(rules)}, got {rule!r}")


def in_colour(images: Num[Array, "b h w c"]) -> Num[Array, "b h w 3"]:
    """Grey images as three equal channels, as the measures' own tools open them."""
    if images.shape[-1] not in (1, 3):
        raise InputError(
            f"images must have 1 channel (grey) or 3, got {images.shape[-1]}; convert them"
        )
    return jnp.broadcast_to(images, (*images.shape[:-1], 3))


def inception_pixels(
    images: UInt8[Array, "b h w c"], rule: str, size: int = 299, dtype: Any = jnp.float32
) -> Float[Array, "b size size 3"]:
    """What Inception sees of images, grey or in colour; computed and returned in `dtype`.

    Raises:
        InputError: there is no such rule, or the images have neither 1 nor 3 channels.
    """
    check_rule(rule, INCEPTION_RULES)
    x = in_colour(images.astype(dtype))
    if rule == "clean":
        x = jnp.clip(resized(x, size, "bicubic"), 0, 255)
    else:
        x = resized(x, size, "corners" if rule == "tf1" else "centres")
    # The graph of 2015 scales by 128, pytorch-fid's code by 127.5.
    return x / 127.5 - 1 if rule == "pytorch_fid" else (x - 128) / 128


def dinov2_pixels(
    images: UInt8[Array, "b h w c"], rule: str, size: int
) -> Float[Array, "b size size 3"]:
    """What DINOv2 sees, before ImageNet's mean colour is subtracted: in [-1, 1] or just outside.

    Both of `DINOV2_RULES` are bicubic, and smooth when images become smaller.

    Raises:
        InputError: there is no such rule, or the images have neither 1 nor 3 channels.
    """
    check_rule(rule, DINOV2_RULES)
    if rule == "pil":
        x = _resized_in_grey_levels(in_colour(images), size).astype(jnp.float32)
    else:
        # Not clipped: bicubic overshoots by a little.
        x = resized(in_colour(images).astype(jnp.float32), size, "bicubic")
    return x / 127.5 - 1


def _resized_in_grey_levels(x: UInt8[Array, "b h w c"], size: int) -> Array:
    """Pillow's integer arithmetic for a batch, on the device; int32 [b, size, size, c]."""
    rows, columns = (
        jnp.asarray(pillow.whole_weights(old, size, "bicubic")) for old in x.shape[1:3]
    )

    def rounded(sums: Array) -> Array:
        # Weights are fixed-point numbers with BITS fractional bits: add a half, shift, clip.
        return jnp.clip((sums + (1 << (pillow.BITS - 1))) >> pillow.BITS, 0, 255)

    y = rounded(jnp.einsum("pw,bhwc->bhpc", columns, x.astype(jnp.int32)))
    return rounded(jnp.einsum("qh,bhpc->bqpc", rows, y))


def resized(x: Float[Array, "b h w c"], size: int, method: str) -> Float[Array, "b size size c"]:
    """Images of another size; their aspect is not kept.

    'corners' is bilinear with pixels at whole numbers (TensorFlow 1), 'centres' bilinear with
    pixels at halves (PyTorch); neither smooths when images become smaller. 'bicubic' does (Keys
    1981, a = -0.5; Pillow's).
    """
    rows, columns = (
        jnp.asarray(_matrix(old, size, method, np.dtype(x.dtype).name)) for old in x.shape[1:3]
    )
    with products_of(x.dtype):
        x = jnp.einsum("pw,bhwc->bhpc", columns, x)  # columns first, as in Pillow
        return jnp.einsum("qh,bhpc->bqpc", rows, x)


@functools.cache
def _matrix(old: int, new: int, method: str, dtype: str) -> Float[np.ndarray, "new old"]:
    """The share of each old pixel in each new one."""
    if method == "bicubic":
        return pillow.weights(old, new, "bicubic").astype(dtype)
    # Positions are computed in the precision of the resize, as the tools do it; beyond the border
    # its pixel is repeated.
    kind = np.dtype(dtype).type
    at = np.arange(new).astype(dtype)
    if method == "corners":
        at = at * kind(np.float32(old / new))
    else:
        at = np.maximum((at + kind(0.5)) * kind(old / new) - kind(0.5), kind(0))
    # Linear interpolation between the two neighbours.
    low = np.minimum(at.astype(int), old - 1)
    part = at - low.astype(dtype)
    weights = np.zeros((new, old), dtype)
    np.add.at(weights, (np.arange(new), low), 1 - part)
    np.add.at(weights, (np.arange(new), np.minimum(low + 1, old - 1)), part)
    return weights
