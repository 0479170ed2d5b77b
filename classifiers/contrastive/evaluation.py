"""How good CLIP is while it is trained: its zero-shot accuracy on held-out images."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from classifiers import from_config
from classifiers.clip import templates
from classifiers.clip.tokenizer import ClipTokenizer
from classifiers.contrastive.training import Training
from classifiers.models.clip import unit
from input_pipeline.batches import loader
from input_pipeline.imagenet import in_words
from input_pipeline.source import Source
from launch.runtime.devices.mesh import fetch, fetch_behind, local_rows, put_batch
from launch.runtime.images import to_float
from launch.runtime.types import Array, Batch, Variables


def make_evaluation(
    training: Training, source: Source, tokenizer: ClipTokenizer, mesh: Mesh
) -> Callable[[Variables], float]:
    """Zero-shot accuracy of variables on held-out images, which all processes share among them.

    Args:
        training: its config has `evaluation_batch_size`, `evaluation_templates`, and for the images
            `evaluation`.
        source: the images.
        tokenizer: of the sentences about classes.
        mesh: where the batches go.
    """
    config, model = training.config, training.model
    transform = from_config.make_transform(config)
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    batch_size = -(-config.evaluation_batch_size // ways) * ways
    rows = local_rows(mesh, batch_size)
    sentences = templates.load(config.get("evaluation_templates", "1"))
    names = [in_words(name) for name in source.class_names]
    tokens = tokenizer([templates.fill(text, name) for name in names for text in sentences])
    replicated = NamedSharding(mesh, P())

    @functools.partial(jax.jit, out_shardings=replicated)
    def encode(variables: Variables, batch: Batch) -> Array:
        features: Any = model.apply(variables, batch["tokens"], method="encode_texts")
        return unit(features)

    @functools.partial(jax.jit, out_shardings=replicated)
    def count(variables: Variables, classes: Array, batch: Batch) -> Array:
        # Flax says any of what apply returns.
        features: Any = model.apply(variables, to_float(batch["image"]), method="encode_images")
        right = jnp.argmax(features @ classes.T, axis=-1) == batch["label"]
        return (right & batch["mask"]).sum()

    def accuracy(variables: Variables) -> float:
        parts = []
        for start in range(0, len(tokens), batch_size):
            batch = tokens[start : start + batch_size]
            padded = np.resize(batch, (batch_size, batch.shape[1]))[rows]
            parts.append(
                fetch(encode(variables, put_batch(mesh, {"tokens": padded})))[: len(batch)]
            )
        of_classes = np.concatenate(parts).reshape(len(names), len(sentences), -1).mean(axis=1)
        classes = np.asarray(unit(jnp.asarray(of_classes)))
        batches = loader.eval_batches(source, batch_size, transform, rows)
        correct = (count(variables, classes, put_batch(mesh, batch)) for batch in batches)
        return sum(map(int, fetch_behind(correct))) / len(source)

    return accuracy
