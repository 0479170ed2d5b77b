"""What test_digests asks of several devices: python -m tests.multihost.digest_devices."""

import json

import jax
import ml_dtypes
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from launch.runtime.checkpoints.content_digest import _program, content_digest
from launch.runtime.devices import mesh
from tests.multihost.processes import join

DTYPES = (bool, np.int8, np.uint16, np.int32, ml_dtypes.bfloat16, np.float16, np.float32)
SPECS = (P(), P("fsdp"), P("data", None, "fsdp"))
# Their bits are taken in different ways; another for each would only compile longer.
SPLIT = ("bool", "bfloat16", "float32")


def arrays():
    rng = np.random.default_rng(0)
    return {np.dtype(dtype).name: rng.normal(size=(16, 3, 8)).astype(dtype) for dtype in DTYPES}


def main():
    join()
    devices = mesh.make_mesh({"data": 2, "fsdp": -1})
    found = {}
    for name in SPLIT:
        array, digests = arrays()[name], []
        for spec in SPECS:
            place = NamedSharding(devices, spec)
            split = jax.make_array_from_callback(array.shape, place, lambda i, a=array: a[i])
            digests.append(content_digest(split))
        found[name] = digests
    # Every device hashes its part, and only sums travel.
    place = NamedSharding(devices, P("fsdp"))
    large = jax.ShapeDtypeStruct((64, 1024), np.float32, sharding=place)
    found["moved"] = largest_collective(large)
    print(json.dumps({**found, "devices": jax.device_count()}))


def largest_collective(shape):
    """Elements in the largest result of a collective, in the program that hashes one array."""

    program = _program(shape.shape, shape.dtype, shape.sharding).result().as_text()
    lines = [line for line in program.splitlines() if " all-" in line or " collective-" in line]
    assert lines
    sizes = [line.split("[", 1)[1].split("]", 1)[0] for line in lines]
    return max(int(np.prod([int(n) for n in size.split(",") if n])) for size in sizes)


if __name__ == "__main__":
    main()
