"""Zero-shot accuracy on held-out images while CLIP is trained."""

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
from classifiers.models.clip import products, unit
from input_pipeline.batches import loader
from input_pipeline.imagenet import in_words
from input_pipeline.source import Source
from launch.runtime.devices.mesh import fetch, fetch_behind, local_rows, put_batch
from launch.runtime.images import to_float
from launch.runtime.types import Array, Batch, Variables


def make_evaluation(
    training: Training, source: Source, tokenizer: ClipTokenizer, mesh: Mesh
) -> Callable[[Variables], float]:
    """A function from variables to accuracy in [0, 1]; all processes share images and texts."""
    config, model = training.config, training.model
    transform = from_config.make_transform(config)
    # Rounded up to what the devices divide; padding rows have mask 0.
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    batch_size = -(-config.evaluation_batch_size // ways) * ways
    rows = local_rows(mesh, batch_size)
    # Tokens never change, so texts are tokenized once; their features change with every step.
    sentences = templates.load(config.get("evaluation_templates", "1"))
    names = [in_words(name) for name in source.class_names]
    # [classes * sentences, length]
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
        right = jnp.argmax(products(features, classes), axis=-1) == batch["label"]
        return (right & batch["mask"]).sum()

    def accuracy(variables: Variables) -> float:
        # 1. Classes: means of their sentences' features, of unit length again.
        parts = []
        for start in range(0, len(tokens), batch_size):
            batch = tokens[start : start + batch_size]
            # One shape, one compilation.
            padded = np.resize(batch, (batch_size, batch.shape[1]))[rows]
            parts.append(
                fetch(encode(variables, put_batch(mesh, {"tokens": padded})))[: len(batch)]
            )
        of_classes = np.concatenate(parts).reshape(len(names), len(sentences), -1).mean(axis=1)
        classes = np.asarray(unit(jnp.asarray(of_classes)))
        # 2. Images: right where the class of the highest cosine is theirs.
        batches = loader.eval_batches(source, batch_size, transform, rows)
        correct = (count(variables, classes, put_batch(mesh, batch)) for batch in batches)
        return sum(map(int, fetch_behind(correct))) / len(source)

    return accuracy
