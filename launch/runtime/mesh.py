"""Devices as a mesh with the axes data, fsdp, tensor; where arrays live on it."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from input_pipeline.files import InputError

AXES = ("data", "fsdp", "tensor")
# Smaller arrays are cheaper to keep whole than to gather.
MIN_SHARDED_SIZE = 2**18


def make_mesh(axes: Mapping[str, int]) -> Mesh:
    """Builds the mesh over all devices.

    Args:
        axes: size of each of data, fsdp, tensor; one of them may be -1, "all that are left".

    Raises:
        InputError: the sizes do not multiply to the number of devices.
    """
    sizes = [int(axes.get(name, 1)) for name in AXES]
    devices = jax.device_count()
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = devices // max(1, -int(np.prod(sizes)))
    if min(sizes) < 1 or int(np.prod(sizes)) != devices:
        wanted = ", ".join(f"{name} {size}" for name, size in zip(AXES, sizes, strict=True))
        raise InputError(f"config.mesh ({wanted}) does not fit {devices} devices")
    # Sharded convolutions fail under Explicit axes, make_mesh's default.
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis of a batch is split over data and fsdp."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def state_shardings(mesh: Mesh, tree: Any) -> Any:
    """FSDP: the largest divisible axis of every big array is split over fsdp.

    Args:
        mesh: the mesh.
        tree: arrays or their shapes.
    """
    ways = mesh.shape["fsdp"]

    def place(leaf: Any) -> NamedSharding:
        divisible = [axis for axis, size in enumerate(leaf.shape) if size % ways == 0]
        if ways == 1 or leaf.size < MIN_SHARDED_SIZE or not divisible:
            return NamedSharding(mesh, P())
        largest = max(divisible, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, P(*[None] * largest, "fsdp"))

    return jax.tree.map(place, tree)


def with_shardings(mesh: Mesh, tree: Any) -> Any:
    """The shapes of a tree, each with the sharding that `state_shardings` gives it."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        state_shardings(mesh, tree),
    )


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Makes global arrays of this process's part of a batch."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }
