"""Pillow's rules of resizing, to the last bit: what other libraries' weights were evaluated with.

Pillow weighs bytes with whole numbers, and rounds to grey levels after columns and after rows.
"""

import functools
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64, Int32, UInt8

if TYPE_CHECKING:
    from scipy import sparse

# Weights are multiplied by 2 to this.
BITS = 22
# By name: how far the kernel reaches, in pixels.
REACH = {"bilinear": 1, "bicubic": 2}


def resize_as_pillow(
    image: UInt8[np.ndarray, "h w c"], height: int, width: int, kernel: str
) -> UInt8[np.ndarray, "{height} {width} c"]:
    """An image of another size, smooth where it becomes smaller.

    Pillow 13 begins with the rows where these become fewer by much more than the columns do; those
    before it, with which numbers were published, never.

    Args:
        image: any number of channels.
        height: of the result.
        width: of the result.
        kernel: a key of `REACH`.
    """
    columns = np.ascontiguousarray(image.transpose(1, 0, 2))
    columns = _summed(columns, width, kernel)
    return _summed(np.ascontiguousarray(columns.transpose(1, 0, 2)), height, kernel)


def _summed(x: UInt8[np.ndarray, "n m c"], size: int, kernel: str) -> UInt8[np.ndarray, "size m c"]:
    if len(x) == size:
        return x
    sums = _sparse(len(x), size, kernel) @ x.reshape(len(x), -1).astype(np.int32)
    levels = (sums + (1 << (BITS - 1))) >> BITS
    return levels.clip(0, 255).astype(np.uint8).reshape(size, *x.shape[1:])


@functools.lru_cache(maxsize=64)
def _sparse(old: int, new: int, kernel: str) -> "sparse.csr_array":
    # Importing it takes a fifth of a second, which tasks that resize nothing save.
    from scipy import sparse

    return sparse.csr_array(whole_weights(old, new, kernel))


def whole_weights(old: int, new: int, kernel: str) -> Int32[np.ndarray, "new old"]:
    """`weights` as Pillow multiplies bytes with them, rounded away from 0."""
    values = weights(old, new, kernel)
    return np.trunc(values * 2**BITS + np.copysign(0.5, values)).astype(np.int32)


def weights(old: int, new: int, kernel: str) -> Float64[np.ndarray, "new old"]:
    """What each new pixel takes of each old one.

    The kernel is as wide as a new pixel, if that is the larger; beyond the border there is nothing.

    Args:
        old: pixels in a row.
        new: pixels in a row of the result.
        kernel: a key of `REACH`; bicubic is Keys 1981 with a = -0.5.
    """
    scale = old / new
    wide = max(scale, 1.0)
    reach = REACH[kernel] * wide
    values = np.zeros((new, old))
    for row in range(new):
        centre = (row + 0.5) * scale
        first = max(int(centre - reach + 0.5), 0)
        last = min(int(centre + reach + 0.5), old)
        t = np.abs((np.arange(first, last) - centre + 0.5) / wide)
        parts = _keys(t) if kernel == "bicubic" else np.maximum(1 - t, 0)
        values[row, first:last] = parts / parts.sum()
    return values


def _keys(t: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    near = 1.5 * t**3 - 2.5 * t**2 + 1  # Keys 1981, Eq. 4
    far = -0.5 * (t**3 - 5 * t**2 + 8 * t - 4)
    return np.where(t < 1, near, np.where(t < 2, far, 0))
