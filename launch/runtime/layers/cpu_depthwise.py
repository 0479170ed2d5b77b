"""Depthwise convolution as a sum of shifted products, for CPUs.

XLA's CPU compiler loops over groups one by one, 7 to 46 times as slow; it makes one vectorized loop
of this sum. `python -m tests.benchmarks.depthwise` measures both.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from launch.runtime.types import Array

_Pairs = tuple[tuple[int, int], ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def depthwise(
    strides: tuple[int, ...],
    pads: _Pairs,
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "y x 1 c"],
) -> Float[Array, "b h2 w2 c"]:
    """Each channel convolved with its own window; differentiates in reverse only.

    `pads` are rows and columns of zeros before and after, at least 0, and the window must fit.
    Sums are in float32, the result in the type of `x`.
    """
    padded = _pad(x, pads)
    total = sum(
        padded[shifted] * kernel[at].astype(jnp.float32)
        for at, shifted in _shifts(kernel.shape[:2], strides, padded.shape[1:3])
    )
    return jnp.asarray(total, x.dtype)


def _forward(
    strides: tuple[int, ...], pads: _Pairs, x: Array, kernel: Array
) -> tuple[Array, tuple[Array, Array]]:
    return depthwise(strides, pads, x, kernel), (x, kernel)


def _backward(
    strides: tuple[int, ...], pads: _Pairs, kept: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, kernel = kept
    # 1. With respect to the inputs: zeros between the gradient's rows where strides skip some, then
    # the turned window over all of it.
    spread = [
        (window - 1 - low, size + low - stride * (count - 1) - 1, stride - 1)
        for window, (low, _), size, stride, count in zip(
            kernel.shape[:2], pads, x.shape[1:3], strides, gradient.shape[1:3], strict=True
        )
    ]
    zero = jnp.zeros((), gradient.dtype)
    dilated = jax.lax.pad(gradient, zero, [(0, 0, 0), *spread, (0, 0, 0)])
    x_gradient = depthwise((1, 1), ((0, 0), (0, 0)), dilated, kernel[::-1, ::-1])

    # 2. With respect to the kernel: for each element, the sum of the gradient times what it met.
    # One image at a time, which fits a CPU's cache: each is read once for every element.
    def add(total: Array, image: tuple[Array, Array]) -> tuple[Array, None]:
        padded, seen_by = image
        sums = [
            (padded[shifted] * seen_by).sum(axis=(0, 1))
            for _, shifted in _shifts(kernel.shape[:2], strides, padded.shape[:2])
        ]
        return total + jnp.stack(sums), None

    start = jnp.zeros((math.prod(kernel.shape[:2]), x.shape[-1]))
    total, _ = jax.lax.scan(add, start, (_pad(x, pads), gradient.astype(jnp.float32)))
    return x_gradient, total.reshape(kernel.shape).astype(kernel.dtype)


depthwise.defvjp(_forward, _backward)


def _pad(x: Array, pads: _Pairs) -> Array:
    return jnp.pad(x, ((0, 0), *pads, (0, 0))).astype(jnp.float32)


def _shifts(
    window: Sequence[int], strides: Sequence[int], sizes: Sequence[int]
) -> Iterator[tuple[tuple[slice, ...], Any]]:
    # For each element of the window, itself, and the inputs that it meets at all positions.
    for i in range(window[0]):
        for j in range(window[1]):
            rows, columns = (
                slice(start, size - wide + 1 + start, stride)
                for start, wide, stride, size in zip((i, j), window, strides, sizes, strict=True)
            )
            yield np.s_[i : i + 1, j : j + 1], (..., rows, columns, slice(None))
