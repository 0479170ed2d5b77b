"""Images at the border: uint8 in [0, 255] outside, float32 in [-1, 1] inside."""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, UInt8

from launch.runtime.types import Array


def to_float(images: UInt8[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
    """[0, 255] to [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1.0


@jax.jit
def to_uint8(images: Float[Array, "*b h w c"]) -> UInt8[Array, "*b h w c"]:
    """[-1, 1] to [0, 255], rounded; NaN becomes an arbitrary number, see `finite_images`."""
    return jnp.round(jnp.clip(images * 127.5 + 127.5, 0, 255)).astype(jnp.uint8)


@jax.jit
def finite_images(images: Float[Array, "b h w c"]) -> Bool[Array, " b"]:
    """Which images hold neither NaN nor infinity; stays on the device."""
    return jnp.isfinite(images).all(axis=(1, 2, 3))
