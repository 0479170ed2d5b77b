"""What all networks are made of: Dense and Conv that say how their kernels travel on a mesh.

Kernels are used whole over fsdp and split over tensor. The U-Nets take these layers from here, as
`classifiers.models` is the lower room.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
from flax.linen.dtypes import promote_dtype
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from launch.runtime.mesh import state_spec

Kernel = Float[Array, "*inputs outputs"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gather(mesh: AbstractMesh, kernel: Kernel) -> Kernel:
    axes = (axis if axis == "tensor" else None for axis in state_spec(mesh, kernel))
    return jax.lax.with_sharding_constraint(kernel, P(*axes))


def _forward(mesh: AbstractMesh, kernel: Kernel) -> tuple[Kernel, None]:
    return _gather(mesh, kernel), None


def _backward(mesh: AbstractMesh, _: None, gradient: Kernel) -> tuple[Kernel]:
    # Split at once: what a device does not keep of a gradient need not reach it.
    return (jax.lax.with_sharding_constraint(gradient, state_spec(mesh, gradient)),)


_gather.defvjp(_forward, _backward)


def _promote(
    inputs: Array, kernel: Kernel, bias: Array | None, *, dtype: Any = None, **options: Any
) -> tuple[Array, ...]:
    """Casts all three, and then gathers the kernel: in half precision half the bytes travel.

    Gathering is said and not left to XLA's partitioner. Where data, fsdp and tensor are all split
    it would otherwise find ways of its own, some with wrong gradients.
    """
    inputs, kernel, bias = promote_dtype(inputs, kernel, bias, dtype=dtype, **options)
    mesh = jax.sharding.get_abstract_mesh()
    return inputs, kernel if mesh.size <= 1 else _gather(mesh, kernel), bias


Dense = functools.partial(nn.Dense, promote_dtype=_promote)
Conv = functools.partial(nn.Conv, promote_dtype=_promote)
