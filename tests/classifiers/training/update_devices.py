"""Twenty steps of a classifier on meshes of some devices: losses as one JSON line.

python -m tests.classifiers.training.update_devices resnet '[[1, 1, 1], [2, 2, 2]]'

Each entry is a mesh (data, fsdp, tensor), of the first so many devices.
"""

import json
import sys
from unittest import mock

import jax
import numpy as np

from classifiers.training import warm_start
from classifiers.training.training import Training
from input_pipeline.batches import loader
from input_pipeline.sources.digits import digits
from launch.runtime.devices import mesh as meshes
from tests.classifiers import tiny_training
from tests.classifiers.tiny_training import BATCH, STEPS
from tests.multihost.processes import join


def losses_of(net, sizes):
    """Losses of every step, and the share of the state that a device holds."""
    config = tiny_training.get_config(f"net={net}")
    devices = jax.devices()[: int(np.prod(sizes))]
    mesh = meshes.make_mesh(dict(zip(meshes.AXES, sizes, strict=True)), devices)
    training = Training.of(config, 10, (8, 8, 1))
    source, rows = digits("train"), meshes.local_rows(mesh, BATCH)
    data, found = loader.batches(source, BATCH, seed=0, rows=rows), []
    step = training.step(mesh)
    with jax.set_mesh(mesh):
        state = warm_start.create(training, mesh, 0)
        for batch in loader.iterate(data, 0, STEPS):
            state, metrics = step(state, meshes.put_batch(mesh, batch))
            found.append(metrics)
    leaves = jax.tree.leaves(state)
    held = sum(leaf.addressable_shards[0].data.size for leaf in leaves)
    return {
        "losses": [float(metrics["loss"]) for metrics in found],
        "gradient_norms": [float(metrics["gradient_norm"]) for metrics in found],
        "held": held / sum(leaf.size for leaf in leaves),
    }


def main():
    join()
    net, sizes = sys.argv[1], json.loads(sys.argv[2])
    # So that this small state is split.
    with mock.patch.object(meshes, "MIN_SHARDED_SIZE", 64):
        found = [losses_of(net, each) for each in sizes]
    print(json.dumps({"devices": jax.device_count(), "found": found}))


if __name__ == "__main__":
    main()
