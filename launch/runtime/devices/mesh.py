"""Devices as a mesh with the axes data, fsdp, tensor, and where arrays live on it."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Int

from launch.errors import InputError
from launch.fields import Fields
from launch.runtime.types import Array, Batch

AXES = ("data", "fsdp", "tensor")
# Elements. Smaller arrays are cheaper to replicate than to gather.
MIN_SHARDED_SIZE = 2**18


def make_mesh(axes: Fields, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Builds a mesh over all devices of the job, or the given ones.

    `axes` are the sizes of data, fsdp and tensor (1 if absent); one may be -1, "the rest". Raises
    `InputError` if their product is not the number of devices.
    """
    sizes = [int(axes.get(name, 1)) for name in AXES]
    count = jax.device_count() if devices is None else len(devices)
    if sizes.count(-1) == 1:
        # The product is negative: it holds the -1.
        sizes[sizes.index(-1)] = count // max(1, -int(np.prod(sizes)))
    if min(sizes) < 1 or int(np.prod(sizes)) != count:
        described = ", ".join(f"{name} {size}" for name, size in zip(AXES, sizes, strict=True))
        raise InputError(f"config.mesh must fit {count} devices, got {described}")
    # Sharded convolutions fail under Explicit axes, make_mesh's default.
    types = (AxisType.Auto,) * len(AXES)
    return Mesh(_arrange(sizes, devices or jax.devices()), AXES, axis_types=types)


def _arrange(sizes: Sequence[int], devices: Sequence[jax.Device]) -> np.ndarray:
    # Neighbours on the mesh should be neighbours on the network.
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    # A mesh axis may be part of an axis of the pod's torus: fsdp 8 on 4x4x16.
    options: dict[str, Any] = dict(devices=devices, allow_split_physical_axes=True)
    if slices == 1 or devices[0].platform != "tpu":
        return mesh_utils.create_device_mesh(sizes, **options)
    # Slices are joined by the slower data-centre network: only the data axis crosses it.
    if sizes[0] % slices:
        raise InputError(
            f"config.mesh: data must be a multiple of the {slices} slices, got {sizes[0]}"
        )
    inside = sizes[0] // slices, *sizes[1:]
    return mesh_utils.create_hybrid_device_mesh(inside, (slices, 1, 1), **options)


def platform() -> str:
    """The platform of the mesh in use (whose chips may be elsewhere), else JAX's default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the first axis of a batch over data and fsdp."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def split_batch(x: Array) -> Array:
    """Pins an activation to the mesh in use, if any: its batch axis is split, if it divides."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1 or x.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]):
        return x
    return jax.lax.with_sharding_constraint(x, P(("data", "fsdp")))


def state_spec(mesh: Mesh | AbstractMesh, leaf: Any) -> P:
    """How an array of a state is split: one rule for all arrays.

    Small ones are replicated. The last axis, a kernel's output channels, goes over tensor, the
    largest of the other axes (of all, if tensor is 1) over fsdp. Axes that do not divide are not
    split.
    """
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
    axes: list[str | None] = [None] * len(leaf.shape)
    if leaf.size < MIN_SHARDED_SIZE:
        return P()
    if tensor > 1 and leaf.shape[-1] % tensor == 0:
        axes[-1] = "tensor"
    free = [axis for axis, name in enumerate(axes) if name is None]
    divisible = [axis for axis in free if leaf.shape[axis] % fsdp == 0]
    if fsdp > 1 and divisible:
        axes[max(divisible, key=lambda axis: leaf.shape[axis])] = "fsdp"
    # Drop trailing None: P('fsdp') and P('fsdp', None) mean the same.
    while axes and axes[-1] is None:
        axes.pop()
    return P(*axes)


def state_shardings(mesh: Mesh, tree: Any) -> Any:
    """The shardings of a state's arrays, see `state_spec`."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh, state_spec(mesh, leaf)), tree)


def with_shardings(mesh: Mesh, tree: Any) -> Any:
    """Shapes and types of a tree, with the shardings of `state_shardings`."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        state_shardings(mesh, tree),
    )


def local_rows(mesh: Mesh, batch_size: int) -> Int[np.ndarray, " rows"]:
    """Rows of a global batch that this process's devices hold, in ascending order."""
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in indices.values()]))


def put_batch(mesh: Mesh, batch: Batch) -> dict[str, jax.Array]:
    """Makes global arrays from this process's rows of a batch, see `local_rows`."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }


def replicate(mesh: Mesh, array: np.ndarray) -> jax.Array:
    """Puts an array on every device; each process must pass the same values."""
    array = np.asarray(array)
    sharding = NamedSharding(mesh, P())
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def put_split(mesh: Mesh, tree: Any) -> Any:
    """Splits the first axis of arrays over data and fsdp; each process must pass the same."""

    def put(array: Any) -> jax.Array:
        sharding = batch_sharding(mesh)
        # An array that spans several processes is resharded by a jitted identity.
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            return jax.jit(lambda x: x, out_shardings=sharding)(array)
        if jax.process_count() == 1:
            return jax.device_put(array, sharding)
        # `make_array_from_callback` takes no key arrays: send the words behind them.
        if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(array)))
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, tree)


def fetch(array: Array) -> np.ndarray:
    """The whole array as NumPy, on every process; collective if it spans several."""
    if isinstance(array, np.ndarray) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


def fetch_behind(results: Iterable[Any]) -> Iterator[Any]:
    """Fetches trees of arrays to the host, each only when the next one is under way."""
    # So the devices do not wait for the host, and hold at most two results.
    ahead: list[Any] = []
    for result in results:
        ahead.append(result)
        if len(ahead) > 1:
            yield jax.tree.map(fetch, ahead.pop(0))
    for result in ahead:
        yield jax.tree.map(fetch, result)
