"""Accuracy on held-out images during training."""

import functools
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from classifiers import from_config
from classifiers.training.training import Training
from input_pipeline.batches import loader
from input_pipeline.source import Source
from launch.runtime.devices.mesh import fetch_behind, local_rows, put_batch
from launch.runtime.images import to_float
from launch.runtime.types import Array, Batch, Variables


def make_evaluation(training: Training, source: Source, mesh: Mesh) -> Callable[[Variables], float]:
    """A function from variables to accuracy in [0, 1]; all processes share the images."""
    config, transform = training.config, from_config.make_transform(training.config)
    # Rounded up to what the devices divide; padding rows have mask 0.
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    batch_size = -(-config.evaluation_batch_size // ways) * ways
    rows = local_rows(mesh, batch_size)

    @functools.partial(jax.jit, out_shardings=NamedSharding(mesh, P()))
    def count(variables: Variables, batch: Batch) -> Array:
        logits = cast(Array, training.model.apply(variables, to_float(batch["image"])))
        return ((jnp.argmax(logits, axis=-1) == batch["label"]) & batch["mask"]).sum()

    def accuracy(variables: Variables) -> float:
        batches = loader.eval_batches(source, batch_size, transform, rows)
        # A generator: batches are put as they are counted.
        correct = (count(variables, put_batch(mesh, batch)) for batch in batches)
        # fetch_behind reads the count of one batch while the next runs, so the device never waits.
        return sum(map(int, fetch_behind(correct))) / len(source)

    return accuracy
