"""Products of float32 in float32.

Left to itself XLA rounds their inputs: to bfloat16 on TPUs, to TF32 on GPUs from Ampere on. What is
computed in float32 is so on purpose, as a comparison or as the last layer of a network in half
precision. Where `JAX_DEFAULT_MATMUL_PRECISION` is set, it decides.
"""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp


def precision_for(dtype: Any) -> jax.lax.Precision | None:
    """What a product of numbers of this type asks for; None is nothing, XLA's default."""
    exact = jnp.dtype(dtype) == jnp.float32 and jax.default_matmul_precision.value is None
    return jax.lax.Precision.HIGHEST if exact else None


def products_of(dtype: Any) -> contextlib.AbstractContextManager:
    """In it, functions that take no precision ask for that of this type."""
    exact = precision_for(dtype) is not None
    return jax.default_matmul_precision("highest") if exact else contextlib.nullcontext()
