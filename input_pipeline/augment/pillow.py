"""Pillow's rules of resizing, bit for bit: what other libraries' weights were evaluated with."""

import functools
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64, Int32, UInt8

if TYPE_CHECKING:
    from scipy import sparse

# Fixed-point weights have this many bits after the point (Pillow, Resample.c: PRECISION_BITS).
BITS = 22
# How far each kernel reaches to either side, in pixels.
REACH = {"bilinear": 1, "bicubic": 2}


def resize_as_pillow(
    image: UInt8[np.ndarray, "h w c"], height: int, width: int, kernel: str
) -> UInt8[np.ndarray, "{height} {width} c"]:
    """Resizes, with a low-pass filter where the image shrinks; `kernel` is a key of `REACH`."""
    # Width first, then height, rounding to grey levels after each. Pillow 13 starts with the height
    # where that shrinks much more; earlier versions, with which numbers were published, never do.
    # [h, w, c] -> [w, h, c]
    columns = np.ascontiguousarray(image.transpose(1, 0, 2))
    columns = _summed(columns, width, kernel)
    # [width, h, c] -> [h, width, c]
    return _summed(np.ascontiguousarray(columns.transpose(1, 0, 2)), height, kernel)


def _summed(x: UInt8[np.ndarray, "n m c"], size: int, kernel: str) -> UInt8[np.ndarray, "size m c"]:
    if len(x) == size:
        return x
    # [size, n] @ [n, m * c]. At most 2^8 * 2^22 a sum (bicubic a little more), so int32 is enough.
    sums = _sparse(len(x), size, kernel) @ x.reshape(len(x), -1).astype(np.int32)
    # Rounds to the nearest level.
    levels = (sums + (1 << (BITS - 1))) >> BITS
    return levels.clip(0, 255).astype(np.uint8).reshape(size, *x.shape[1:])


@functools.lru_cache(maxsize=64)
def _sparse(old: int, new: int, kernel: str) -> "sparse.csr_array":
    # Imported late: it takes 0.2 s, which tasks without resizing need not wait for.
    from scipy import sparse

    return sparse.csr_array(whole_weights(old, new, kernel))


def whole_weights(old: int, new: int, kernel: str) -> Int32[np.ndarray, "new old"]:
    """`weights` in Pillow's fixed-point numbers, rounded half away from zero."""
    values = weights(old, new, kernel)
    return np.trunc(values * 2**BITS + np.copysign(0.5, values)).astype(np.int32)


def weights(old: int, new: int, kernel: str) -> Float64[np.ndarray, "new old"]:
    """Each old pixel's weight in each new one, by a key of `REACH`; rows sum to 1."""
    # Old pixels per new one. Shrinking stretches the kernel to the width of a new pixel.
    scale = old / new
    wide = max(scale, 1.0)
    reach = REACH[kernel] * wide
    values = np.zeros((new, old))
    for row in range(new):
        # Of the new pixel, in old pixels from the corner of the first one.
        centre = (row + 0.5) * scale
        # The kernel is cut off at the borders.
        first = max(int(centre - reach + 0.5), 0)
        last = min(int(centre + reach + 0.5), old)
        # Distances from the centre in units of the kernel, at the middles of the old pixels.
        t = np.abs((np.arange(first, last) - centre + 0.5) / wide)
        parts = _keys(t) if kernel == "bicubic" else np.maximum(1 - t, 0)
        values[row, first:last] = parts / parts.sum()
    return values


def _keys(t: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    near = 1.5 * t**3 - 2.5 * t**2 + 1  # Keys 1981, Eq. 4, with a = -0.5
    far = -0.5 * (t**3 - 5 * t**2 + 8 * t - 4)
    return np.where(t < 1, near, np.where(t < 2, far, 0))
