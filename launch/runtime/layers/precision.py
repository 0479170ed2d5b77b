"""Float32 products at float32 precision.

By default XLA rounds their inputs, to bfloat16 on TPUs, to TF32 on GPUs from Ampere on. What is
computed in float32 is so on purpose: a comparison, or the last layer of a network in half
precision. If `JAX_DEFAULT_MATMUL_PRECISION` is set, it decides.
"""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp


def precision_for(dtype: Any) -> jax.lax.Precision | None:
    """The precision to ask for in a product of this type; None is XLA's default."""
    exact = jnp.dtype(dtype) == jnp.float32 and jax.default_matmul_precision.value is None
    return jax.lax.Precision.HIGHEST if exact else None


def products_of(dtype: Any) -> contextlib.AbstractContextManager:
    """Inside, functions that take no precision argument use that of this type."""
    exact = precision_for(dtype) is not None
    return jax.default_matmul_precision("highest") if exact else contextlib.nullcontext()
