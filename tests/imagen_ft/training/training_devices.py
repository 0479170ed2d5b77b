"""Twenty steps of training on meshes of some devices: losses as one JSON line.

python -m tests.imagen_ft.training.training_devices '[[[1, 1, 1], 1], [[2, 2, 2], 2]]'

Each entry is a mesh (data, fsdp, tensor), of the first so many devices, and the parts that a batch
is taken in. With a run as a second argument adapters of it are trained. `tests.multihost.processes`
makes it one of several processes.
"""

import json
import sys
from unittest import mock

import jax
import numpy as np

from imagen_ft.text.encoders import make_text_encoder
from imagen_ft.training import warm_start
from imagen_ft.training.training import Training
from input_pipeline import sources
from input_pipeline.batches import loader
from launch.runtime.devices import mesh as meshes
from tests.imagen_ft import tiny_training
from tests.imagen_ft.tiny_training import BATCH, STEPS
from tests.multihost.processes import join


def config_of(parts, base):
    config = tiny_training.get_config()
    config.accumulation, config.init_from = parts, base
    if base:
        config.lora = dict(rank=4)
    return config


def losses_of(sizes, parts, base=""):
    """Losses of every step, and the shares of the state that the devices hold."""
    config = config_of(parts, base)
    devices = jax.devices()[: int(np.prod(sizes))]
    mesh = meshes.make_mesh(dict(zip(meshes.AXES, sizes, strict=True)), devices)
    training, encoder = Training.of(config), make_text_encoder(config.text)
    text = meshes.replicate(mesh, encoder.embed(training.class_names))
    null_text = meshes.replicate(mesh, encoder.null()[0])
    step = training.step(mesh, text, null_text, warm_start.load_base(training, mesh))
    source, rows = sources.load(config.train_source), meshes.local_rows(mesh, BATCH)
    data, losses = loader.batches(source, BATCH, seed=0, rows=rows), []
    with jax.set_mesh(mesh):
        state = warm_start.create(training, mesh)
        for batch in loader.iterate(data, 0, STEPS):
            batch = {name: batch[name] for name in ("image", "label")}
            state, metrics = step(state, meshes.put_batch(mesh, batch))
            losses.append(metrics)
    leaves = jax.tree.leaves(state)
    held = sum(leaf.addressable_shards[0].data.size for leaf in leaves)
    whole = sum(leaf.size for leaf in leaves)
    return {
        "losses": [float(metrics["loss"]) for metrics in losses],
        "gradient_norms": [float(metrics["gradient_norm"]) for metrics in losses],
        "held": held / whole,
    }


def main():
    join()
    # So that this small state is split.
    with mock.patch.object(meshes, "MIN_SHARDED_SIZE", 64):
        found = [losses_of(sizes, parts, *sys.argv[2:]) for sizes, parts in json.loads(sys.argv[1])]
    print(json.dumps({"devices": jax.device_count(), "found": found}))


if __name__ == "__main__":
    main()
