"""The images that classifiers are trained on and watched with."""

import dataclasses
import functools
import math

from jax.sharding import Mesh

from classifiers import from_config
from classifiers.training.training import Training
from input_pipeline import sources
from input_pipeline.batches import loader
from input_pipeline.batches.mixture import Union, check_weight
from input_pipeline.batches.workers import count_workers
from input_pipeline.source import Source, check_labels, check_same_classes, in_memory
from launch.runtime.devices.mesh import local_rows
from launch.runtime.types import Reader


@dataclasses.dataclass(frozen=True)
class TrainingImages:
    """Opened sources.

    Attributes:
        train: the union of all that are trained on.
        evaluation: what training watches itself with; its classes are the same.
        digests: of the sources that can change, by their names in `config.train_sources`.
    """

    train: Source
    evaluation: Source
    digests: dict[str, str]


def open_images(training: Training, evaluation: Source) -> TrainingImages:
    """Opens the sources of `config.train_sources`.

    Args:
        training: its config has `in_memory` and `synthetic_weight`.
        evaluation: the images of `config.evaluation_source`.

    Raises:
        InputError: one is missing or has other classes, a label is of none of them, or a domain
            that the config speaks of has no images.
    """
    config = training.config
    opened = {name: sources.load(spec) for name, spec in config.train_sources.items()}
    train: Source = Union(list(opened.values()))
    check_same_classes(
        "config.train_sources",
        train.class_names,
        "config.evaluation_source",
        evaluation.class_names,
    )
    for source in (train, evaluation):
        check_labels(source)
    if config.get("synthetic_weight") is not None:
        check_weight(train.domain, config.synthetic_weight)
    digests = {name: digest for name, source in opened.items() if (digest := source.digest())}
    whole = in_memory(train) if config.in_memory else train
    return TrainingImages(whole, evaluation, digests)


def make_reader(training: Training, source: Source, seed: int, mesh: Mesh) -> Reader:
    """What reads the batches of one seed.

    Args:
        training: its config says what happens to images, and how they come together in batches.
        source: all of them.
        seed: of their order and of their augmentation.
        mesh: where the batches go.
    """
    config = training.config
    rows = local_rows(mesh, config.batch_size)
    augment, transform = from_config.make_augment(config), from_config.make_transform(config)
    batches = loader.batches(
        source,
        config.batch_size,
        seed,
        # Without augmentation an image of training is prepared as one of evaluation.
        transform=None if augment else transform,
        augment=augment,
        rows=rows,
        synthetic_weight=config.get("synthetic_weight"),
        repeats=config.get("repeats", 1),
    )
    workers = count_workers(
        config.get("loader_workers", 0),
        len(rows) * math.prod(training.image_shape),
        readers=config.seeds if config.get("vmap_seeds") else 1,
    )
    return functools.partial(loader.iterate, batches, workers=workers)
