"""How good a classifier is while it is trained: its accuracy on held-out images."""

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
    """Accuracy of variables on held-out images, which all processes share among them.

    Args:
        training: its config has `evaluation_batch_size`, and for the images `evaluation`.
        source: the images.
        mesh: where the batches go.
    """
    config, transform = training.config, from_config.make_transform(training.config)
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    batch_size = -(-config.evaluation_batch_size // ways) * ways
    rows = local_rows(mesh, batch_size)

    @functools.partial(jax.jit, out_shardings=NamedSharding(mesh, P()))
    def count(variables: Variables, batch: Batch) -> Array:
        logits = cast(Array, training.model.apply(variables, to_float(batch["image"])))
        return ((jnp.argmax(logits, axis=-1) == batch["label"]) & batch["mask"]).sum()

    def accuracy(variables: Variables) -> float:
        batches = loader.eval_batches(source, batch_size, transform, rows)
        correct = (count(variables, put_batch(mesh, batch)) for batch in batches)
        return sum(map(int, fetch_behind(correct))) / len(source)

    return accuracy
