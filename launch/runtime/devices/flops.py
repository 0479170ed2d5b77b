"""Counting a program's operations before it is compiled, as the platform in use does them.

XLA counts them itself, but before compiling on CPUs only, and the body of a loop once.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np


def count_flops(function: Callable[..., Any], *args: Any) -> float:
    """Floating-point operations of matrix products and convolutions, on all devices together.

    What is computed again in the backward pass counts again. A `scan` counts as often as it turns,
    a `while_loop`, whose turns nobody knows, once, and of a `cond` the longest branch. Not counted
    is what falls on the padding of a convolution (but where a CPU takes its kernel's gradient as
    products, see `layers.cpu_kernels`), and what a kernel written by hand does (cuDNN's
    attention). The function is traced, not compiled.

    Args:
        function: to be called with `args`; a jitted one, then called with them, is not traced
            again.
        *args: arrays or their shapes.
    """
    return _jaxpr_flops(jax.make_jaxpr(lambda *args: function(*args))(*args).jaxpr)


def _jaxpr_flops(jaxpr: Any) -> float:
    return sum(map(_equation_flops, jaxpr.eqns))


def _equation_flops(eqn: Any) -> float:
    name = eqn.primitive.name
    if name == "dot_general":
        return _dot_flops(eqn)
    if name == "conv_general_dilated":
        return _convolution_flops(eqn)
    inner = [_jaxpr_flops(jaxpr) for value in eqn.params.values() for jaxpr in _jaxprs(value)]
    if name == "cond":
        return max(inner)
    return sum(inner) * (eqn.params["length"] if name == "scan" else 1)


def _jaxprs(value: Any) -> Iterator[Any]:
    for item in value if isinstance(value, tuple | list) else (value,):
        jaxpr = getattr(item, "jaxpr", item)
        if hasattr(jaxpr, "eqns"):
            yield jaxpr


def _dot_flops(eqn: Any) -> float:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left, result = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    return 2.0 * math.prod(result) * math.prod(left[axis] for axis in contracted)


def _convolution_flops(eqn: Any) -> float:
    image, kernel = (variable.aval.shape for variable in eqn.invars)
    result, params = eqn.outvars[0].aval.shape, eqn.params
    image_axes, kernel_axes, result_axes = params["dimension_numbers"]
    # A result's feature is a sum over the inputs of its group alone: the kernel's second axis.
    products = result[result_axes[0]] * result[result_axes[1]] * kernel[kernel_axes[1]]
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
