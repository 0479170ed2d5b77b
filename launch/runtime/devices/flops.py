"""Counts the FLOPs of a program before it is compiled, as the platform in use would do them.

XLA's own count is available before compiling on CPUs only, and takes one turn of every loop.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np


def count_flops(function: Callable[..., Any], *args: Any) -> float:
    """FLOPs of the matrix products and convolutions, on all devices together.

    What the backward pass computes again counts again. A `scan` counts once per turn, a
    `while_loop`, whose turns are unknown, once, a `cond` as its longest branch. Not counted: work
    on the padding of convolutions (except where a CPU computes kernel gradients as matrix products,
    see `layers.cpu_kernels`), depthwise convolutions that a CPU computes as sums, and kernels that
    are not traced (cuDNN's attention). The function is only traced; a jitted one that is later
    called with these arguments is not traced again.
    """
    # A jitted function may have compiler options, which JAX forbids inside another one.
    trace = getattr(function, "trace", None) or jax.jit(lambda *args: function(*args)).trace
    return _jaxpr_flops(trace(*args).jaxpr)


def _jaxpr_flops(jaxpr: Any) -> float:
    return sum(map(_equation_flops, jaxpr.eqns))


def _equation_flops(eqn: Any) -> float:
    name = eqn.primitive.name
    if name == "dot_general":
        return _dot_flops(eqn)
    if name == "conv_general_dilated":
        return _convolution_flops(eqn)
    # Everything else costs nothing by itself, but may hold programs: jit, remat, loops, branches.
    inner = [_jaxpr_flops(jaxpr) for value in eqn.params.values() for jaxpr in _jaxprs(value)]
    if name == "cond":
        return max(inner)
    return sum(inner) * (eqn.params["length"] if name == "scan" else 1)


def _jaxprs(value: Any) -> Iterator[Any]:
    # Parameters hold jaxprs bare, closed, or in tuples.
    for item in value if isinstance(value, tuple | list) else (value,):
        jaxpr = getattr(item, "jaxpr", item)
        if hasattr(jaxpr, "eqns"):
            yield jaxpr


def _dot_flops(eqn: Any) -> float:
    # 2 (multiply and add) x size of the result x length of the contracted axes.
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left, result = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    return 2.0 * math.prod(result) * math.prod(left[axis] for axis in contracted)


def _convolution_flops(eqn: Any) -> float:
    # 1. Products per position of the window: batch x outputs x inputs.
    image, kernel = (variable.aval.shape for variable in eqn.invars)
    result, params = eqn.outvars[0].aval.shape, eqn.params
    image_axes, kernel_axes, result_axes = params["dimension_numbers"]
    # An output sums over the inputs of its group only: the kernel's second axis.
    products = result[result_axes[0]] * result[result_axes[1]] * kernel[kernel_axes[1]]
    # 2. For each spatial axis, the pairs of output position and window element that meet an input,
    # neither padding nor a gap of a dilated input.
    for i, (low, _) in enumerate(params["padding"]):
        size, width, count = (
            shape[axes[2 + i]]
            for shape, axes in ((image, image_axes), (kernel, kernel_axes), (result, result_axes))
        )
        gap = params["lhs_dilation"][i]
        starts = np.arange(count) * params["window_strides"][i] - low
        positions = starts[:, None] + np.arange(width) * params["rhs_dilation"][i]
        inside = (positions >= 0) & (positions <= (size - 1) * gap) & (positions % gap == 0)
        products *= int(inside.sum())
    return 2.0 * products
