"""Matrix products and convolutions, exact in float32, on a CPU in the forms in which XLA is fast.

XLA's CPU compiler is several times slower at a 1x1 convolution, and at the gradient of any
convolution's kernel, than at the matrix products that they are. And where a dense layer's kernel
gradient begins with the outputs' gradient transposed, as JAX writes it, the compiler adds up the
gradients of all residual branches again for each. `python -m tests.benchmarks.classifiers` measures
what this brings. Small products and other platforms get what JAX makes by itself, with the
precision that the numbers' type asks for.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from launch.runtime.devices.mesh import platform
from launch.runtime.layers.precision import precision_for

# Operations from which the form matters; below it, programs are better small.
LARGE = 2**27
# Wider kernels are those of patches, whose gradients would be too many slices.
_WIDEST = 7
_Pairs = tuple[tuple[int, int], ...]


def dot_general(
    x: Float[Array, "*b i"], kernel: Float[Array, "i o"], dimension_numbers: Any, **options: Any
) -> Float[Array, "*b o"]:
    """`jax.lax.dot_general` as a dense layer calls it; another form of `LARGE` ones on a CPU."""
    large = 2 * math.prod(x.shape) * kernel.shape[1] >= LARGE
    if platform() == "cpu" and large and options.get("precision") is None:
        return _product(x, kernel)
    return jax.lax.dot_general(x, kernel, dimension_numbers, **_exact(x, options))


def convolve(
    x: Float[Array, "b *space i"],
    kernel: Float[Array, "*window group_i o"],
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> Float[Array, "b *space2 o"]:
    """`jax.lax.conv_general_dilated` as a convolutional layer calls it: channels are last.

    On a CPU, `LARGE` convolutions over two axes take another form, but for dilated and grouped
    ones.
    """
    plain = jax.lax.conv_general_dilated
    window, strides = kernel.shape[:-2], tuple(strides)
    dilations = (*options["lhs_dilation"], *options["rhs_dilation"])
    if (
        platform() != "cpu"
        or len(window) != 2
        or max(window) > _WIDEST
        or options["feature_group_count"] != 1
        or set(dilations) != {1}
        or options.get("precision") is not None
    ):
        return plain(x, kernel, strides, padding, **_exact(x, options))
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], window, strides, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    height, width = _sizes(x, window, strides, pads)
    positions = x.shape[0] * height * width
    if 2 * positions * kernel.size < LARGE or min(map(min, pads)) < 0:
        return plain(x, kernel, strides, padding, **_exact(x, options))
    if window == (1, 1) and not any(map(any, pads)):
        return _product(x[:, :: strides[0], :: strides[1]], kernel[0, 0])
    if not any(map(any, pads)):
        # Where nothing is padded XLA takes a way that is three times as slow.
        return _convolution(strides, ((0, 1), (0, 1)), x, kernel)[:, :height, :width]
    return _convolution(strides, pads, x, kernel)


def _exact(x: Array, options: dict[str, Any]) -> dict[str, Any]:
    """The options, with a precision where none is given."""
    return options | {"precision": options.get("precision") or precision_for(x.dtype)}


@jax.custom_vjp
def _product(x: Float[Array, "*b i"], kernel: Float[Array, "i o"]) -> Float[Array, "*b o"]:
    return _by_rows(x, kernel)


def _by_rows(x: Float[Array, "*b i"], kernel: Float[Array, "i o"]) -> Float[Array, "*b o"]:
    return (_rows(x) @ kernel).reshape(*x.shape[:-1], kernel.shape[1])


def _product_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _by_rows(x, kernel), (x, kernel)


def _product_backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = kept
    return _by_rows(gradient, kernel.T), _kernel_gradient(x, gradient)


_product.defvjp(_product_forward, _product_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _convolution(strides: tuple[int, ...], pads: _Pairs, x: Array, kernel: Array) -> Array:
    return _plain(strides, pads, x, kernel)


def _plain(strides: tuple[int, ...], pads: _Pairs, x: Array, kernel: Array) -> Array:
    axes = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=axes)


def _convolution_forward(
    strides: tuple[int, ...], pads: _Pairs, x: Array, kernel: Array
) -> tuple[Array, tuple[Array, Array]]:
    return _plain(strides, pads, x, kernel), (x, kernel)


def _convolution_backward(
    strides: tuple[int, ...], pads: _Pairs, kept: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, kernel = kept
    of_x = functools.partial(_plain, strides, pads, kernel=kernel)
    (x_gradient,) = jax.linear_transpose(of_x, x)(gradient)
    (down, right), (height, width) = strides, gradient.shape[1:3]
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    rows = []
    for i in range(kernel.shape[0]):
        row = padded[:, i : i + down * (height - 1) + 1 : down]
        seen = [row[:, :, j : j + right * (width - 1) + 1 : right] for j in range(kernel.shape[1])]
        rows.append(_kernel_gradient(jnp.concatenate(seen, axis=-1), gradient))
    return x_gradient, jnp.stack(rows).reshape(kernel.shape)


_convolution.defvjp(_convolution_forward, _convolution_backward)


def _sizes(x: Array, window: Sequence[int], strides: Sequence[int], pads: _Pairs) -> list[int]:
    """Height and width of a convolution's result."""
    return [
        (size + sum(pad) - wide) // stride + 1
        for size, pad, wide, stride in zip(x.shape[1:3], pads, window, strides, strict=True)
    ]


def _rows(x: Float[Array, "*b i"]) -> Float[Array, "n i"]:
    return x.reshape(-1, x.shape[-1])


def _kernel_gradient(
    x: Float[Array, "*b i"], gradient: Float[Array, "*b o"]
) -> Float[Array, "i o"]:
    rows = (_rows(x), _rows(gradient))
    axes = (((0,), (0,)), ((), ()))
    products = jax.lax.dot_general(*rows, axes, preferred_element_type=jnp.float32)
    return products.astype(x.dtype)
