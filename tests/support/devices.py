"""Programs that need several devices: each runs in a process of its own."""

import itertools
import json
import math
import os
import subprocess
import sys

import flax
import jax
import numpy as np

from launch.runtime.devices import mesh as meshes
from tests.support import ROOT


def splits(devices):
    """Every mesh (data, fsdp, tensor) of this many devices."""
    sizes = [size for size in (1, 2, 4, 8) if devices % size == 0]
    found = itertools.product(sizes, repeat=3)
    return [list(split) for split in found if math.prod(split) == devices]


def run_on_eight(module, *arguments):
    """The JSON that `python -m module` prints last, with eight CPU devices, warnings as errors."""
    return run_on(8, module, *arguments)


def run_on(devices, module, *arguments):
    """As `run_on_eight`, with any number of devices."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", module, *arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result.pop("devices") == devices
    return result


def on_mesh(function, sizes, variables, batch, split=None):
    """`function(variables, batch)` on the first devices; its whole arrays, by path.

    Args:
        function: to jit.
        sizes: of the mesh: data, fsdp, tensor.
        variables: split as a state is.
        batch: split as batches are.
        split: the part of the variables as which the result is split; by default the compiler
            decides.
    """
    devices = jax.devices()[: math.prod(sizes)]
    mesh = meshes.make_mesh(dict(zip(meshes.AXES, sizes, strict=True)), devices)
    shardings = meshes.state_shardings(mesh, variables)
    out = {} if split is None else dict(out_shardings=shardings[split])
    with jax.set_mesh(mesh):
        placed = jax.device_put(variables, shardings)
        found = jax.jit(function, **out)(placed, meshes.put_batch(mesh, batch))
    held = [leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(placed["params"])]
    assert all(held) == (math.prod(sizes) == 1)
    return flax.traverse_util.flatten_dict(jax.device_get(found), sep="/")


def drawn(init, rng):
    """Variables with the shapes of `init()`, none of them zero; nothing is compiled.

    Kernels are normal with a variance that keeps the scale of activations, scales are around 1,
    everything else is around 0.
    """

    def draw(path, leaf):
        values = rng.normal(size=leaf.shape).astype(leaf.dtype)
        if leaf.ndim > 1:
            return values / np.float32(np.sqrt(math.prod(leaf.shape[:-1])))
        is_scale = path[-1].key in ("scale", "var")
        return np.float32(is_scale) + np.float32(0.1) * values

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(init))


def relative_errors(found, expected, names):
    """The largest error of each array, relative to its largest value."""
    return {
        name: float(np.abs(found[name] - expected[name]).max() / np.abs(expected[name]).max())
        for name in names
    }
