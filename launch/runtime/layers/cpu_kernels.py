"""Matrix products and convolutions in the forms that XLA's CPU compiler is fast at.

It is several times slower at a 1x1 convolution, and at the gradient of any convolution's kernel,
than at the matrix products that these are. And if the gradient of a dense kernel starts with the
transposed gradient of the outputs, as JAX writes it, the compiler adds up the gradients of all
residual branches again for each. It is slow at depthwise convolutions too (`cpu_depthwise`).
`python -m tests.benchmarks.classifiers`, `clip` and `depthwise` measure the gain. Small products
and other platforms keep JAX's forms, at the precision of `precision_for`. All of it differentiates
in reverse only.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Array, Float

from launch.runtime.devices.mesh import platform
from launch.runtime.layers.cpu_depthwise import depthwise
from launch.runtime.layers.precision import precision_for
from launch.runtime.types import Array as AnyArray

# FLOPs from which the form matters; below, smaller programs are better.
LARGE = 2**27
# Wider windows are those of patch embeddings, whose gradients would take too many slices.
_WIDEST = 7
# FLOPs of a depthwise convolution from which a sum of products pays for its longer program.
_LARGE_DEPTHWISE = 2**22
# Numbers from which a sum of branches is kept.
_LARGE_SUM = 2**16
# Rows from which a turned copy of the kernel is worth its making.
_MANY_ROWS = 1024
_Pairs = tuple[tuple[int, int], ...]


def dot_general(
    x: Float[Array, "*b i"], kernel: Float[Array, "i o"], dimension_numbers: Any, **options: Any
) -> Float[Array, "*b o"]:
    """`jax.lax.dot_general` for a dense layer, in another form on a CPU if `LARGE`."""
    large = 2 * math.prod(x.shape) * kernel.shape[1] >= LARGE
    if platform() == "cpu" and large and options.get("precision") is None:
        return _product(x, kernel)
    return jax.lax.dot_general(x, kernel, dimension_numbers, **_exact(x, options))


def add_branch(
    x: Float[AnyArray, "*b d"], branch: Float[AnyArray, "*b d"]
) -> Float[AnyArray, "*b d"]:
    """`x + branch` in a residual network, computed once for all that use it."""
    # A CPU's compiler would add up the branches so far, and in the gradient those behind, again
    # for each use of their sum: work that grows with the square of the depth. It keeps results of
    # calls. A mesh in use splits them otherwise.
    alone = platform() == "cpu" and jax.sharding.get_abstract_mesh().size <= 1
    alike = x.shape == branch.shape and x.dtype == branch.dtype
    return _kept_sum(x, branch) if alone and alike and x.size >= _LARGE_SUM else x + branch


@jax.custom_vjp
def _kept_sum(x: AnyArray, branch: AnyArray) -> AnyArray:
    return _called(jnp.add, x, branch)


def _kept_sum_forward(x: AnyArray, branch: AnyArray) -> tuple[AnyArray, None]:
    return _kept_sum(x, branch), None


def _kept_sum_backward(_: None, gradient: AnyArray) -> tuple[AnyArray, AnyArray]:
    kept = _called(jnp.positive, gradient)
    return kept, kept


_kept_sum.defvjp(_kept_sum_forward, _kept_sum_backward)


def _called(function: Any, *arrays: AnyArray) -> AnyArray:
    with set_xla_metadata(inlineable="false"):
        return jax.jit(function, inline=False)(*arrays)


def convolve(
    x: Float[Array, "b *space i"],
    kernel: Float[Array, "*window group_i o"],
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> Float[Array, "b *space2 o"]:
    """`jax.lax.conv_general_dilated` with channels last, in another form on a CPU if large."""
    # 1. Leave to JAX what the forms below do not cover.
    plain = jax.lax.conv_general_dilated
    window, strides = kernel.shape[:-2], tuple(strides)
    dilations = (*options["lhs_dilation"], *options["rhs_dilation"])
    if (
        platform() != "cpu"
        or len(window) != 2
        or max(window) > _WIDEST
        or options["feature_group_count"] not in (1, _groups_if_depthwise(x, kernel))
        or set(dilations) != {1}
        or options.get("precision") is not None
    ):
        return plain(x, kernel, strides, padding, **_exact(x, options))
    # 2. Sizes: of the padding, and of the result.
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], window, strides, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    height, width = _sizes(x, window, strides, pads)
    flops = 2 * x.shape[0] * height * width * kernel.size
    # 3. Small and empty ones, and negative padding, are left to JAX as well.
    by_channel = options["feature_group_count"] > 1
    least = max(1, _LARGE_DEPTHWISE if by_channel else LARGE)
    if flops < least or min(map(min, pads)) < 0:
        return plain(x, kernel, strides, padding, **_exact(x, options))
    if by_channel:
        return depthwise(strides, pads, x, kernel)
    # 4. A 1x1 convolution is a matrix product.
    if window == (1, 1) and not any(map(any, pads)):
        return _product(x[:, :: strides[0], :: strides[1]], kernel[0, 0])
    if not any(map(any, pads)):
        # XLA takes a path three times as slow if nothing is padded: pad by one row and column, and
        # cut off what they add.
        return _convolution(strides, ((0, 1), (0, 1)), x, kernel)[:, :height, :width]
    return _convolution(strides, pads, x, kernel)


def _groups_if_depthwise(x: Array, kernel: Array) -> int:
    # As many groups as channels, with one filter each; 1 if it cannot be one. A mesh in use would
    # gather the whole batch for the gradient, which takes one image after the other.
    alone = jax.sharding.get_abstract_mesh().size <= 1
    return x.shape[-1] if alone and kernel.shape[-2:] == (1, x.shape[-1]) else 1


def _exact(x: Array, options: dict[str, Any]) -> dict[str, Any]:
    return options | {"precision": options.get("precision") or precision_for(x.dtype)}


@jax.custom_vjp
def attend(
    query: Float[Array, "b n heads d"],
    key: Float[Array, "b m heads d"],
    value: Float[Array, "b m heads d"],
) -> Float[Array, "b n heads d"]:
    """Attention with the heads in front, up to twice as fast as JAX's form in float32."""
    return _attend_forward(query, key, value)[0]


_Kept = tuple[Array, Array, Array, Array]


def _attend_forward(query: Array, key: Array, value: Array) -> tuple[Array, _Kept]:
    # The barriers make copies in the order that the products read.
    scale = query.shape[-1] ** -0.5
    q, k, v = (jax.lax.optimization_barrier(_swap(x)) for x in (query * scale, key, value))
    weights = jax.nn.softmax(jnp.einsum("bhnd,bhmd->bhnm", q, k))
    out = jnp.einsum("bhnm,bhmd->bhnd", weights, v)
    return _swap(jax.lax.optimization_barrier(out)), (q, k, v, weights)


def _attend_backward(kept: _Kept, gradient: Array) -> tuple[Array, ...]:
    # dv = w^T g, dw = g v^T; through the softmax ds = w (dw - sum(w dw)); dq = ds k, dk = ds^T q
    q, k, v, weights = kept
    of_out = jax.lax.optimization_barrier(_swap(gradient))
    of_weights = jnp.einsum("bhnd,bhmd->bhnm", of_out, v)
    expected = jnp.sum(weights * of_weights, axis=-1, keepdims=True)
    of_logits = weights * (of_weights - expected)
    gradients = (
        jnp.einsum("bhnm,bhmd->bhnd", of_logits, k) * q.shape[-1] ** -0.5,
        jnp.einsum("bhnm,bhnd->bhmd", of_logits, q),
        jnp.einsum("bhnm,bhnd->bhmd", weights, of_out),
    )
    return tuple(_swap(jax.lax.optimization_barrier(x)) for x in gradients)


attend.defvjp(_attend_forward, _attend_backward)


def _swap(x: Float[Array, "b n heads d"]) -> Float[Array, "b heads n d"]:
    return x.transpose(0, 2, 1, 3)


@jax.custom_vjp
def _product(x: Float[Array, "*b i"], kernel: Float[Array, "i o"]) -> Float[Array, "*b o"]:
    return _by_rows(x, kernel)


def _by_rows(x: Float[Array, "*b i"], kernel: Float[Array, "i o"]) -> Float[Array, "*b o"]:
    return (_rows(x) @ kernel).reshape(*x.shape[:-1], kernel.shape[1])


def _product_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _by_rows(x, kernel), (x, kernel)


def _product_backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    # dx = g kernel^T, dkernel = x^T g
    x, kernel = kept
    turned = kernel.T
    if math.prod(gradient.shape[:-1]) >= _MANY_ROWS:
        turned = jax.lax.optimization_barrier(turned)
    return _by_rows(gradient, turned), _kernel_gradient(x, gradient)


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
    # 1. With respect to the inputs: the transposed convolution, which XLA does well.
    of_x = functools.partial(_plain, strides, pads, kernel=kernel)
    (x_gradient,) = jax.linear_transpose(of_x, x)(gradient)
    # 2. With respect to the kernel: for each element of the window, a product of the outputs'
    # gradient with the inputs that it saw. [b, h, w, kw * i] and [b, h, w, o] to [kw * i, o], row
    # by row of the window.
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
    # The usual rule, here for windows without dilation.
    return [
        max(0, (size + sum(pad) - wide) // stride + 1)
        for size, pad, wide, stride in zip(x.shape[1:3], pads, window, strides, strict=True)
    ]


def _rows(x: Float[Array, "*b i"]) -> Float[Array, "n i"]:
    return x.reshape(-1, x.shape[-1])


def _kernel_gradient(
    x: Float[Array, "*b i"], gradient: Float[Array, "*b o"]
) -> Float[Array, "i o"]:
    # Contract the rows [n, i], [n, o] to [i, o]; sums in float32.
    rows = (_rows(x), _rows(gradient))
    axes = (((0,), (0,)), ((), ()))
    products = jax.lax.dot_general(*rows, axes, preferred_element_type=jnp.float32)
    return products.astype(x.dtype)
