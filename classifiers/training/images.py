"""The images that classifiers are trained on, and those they are watched with."""

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
    """Opened sources."""

    train: Source  # the union of all of `config.train_sources`
    evaluation: Source  # of the same classes
    digests: dict[str, str]  # checksums by name, of those sources that can change


def open_images(training: Training, evaluation: Source) -> TrainingImages:
    """Opens the sources of `config.train_sources`.

    Raises:
        InputError: one is missing or has other classes, a label is out of range, or a domain that
            `config.synthetic_weight` needs has no images.
    """
    config = training.config
    # 1. Open each, and join them.
    opened = {name: sources.load(spec) for name, spec in config.train_sources.items()}
    train: Source = Union(list(opened.values()))
    # 2. Check what would otherwise fail, or train in vain, hours later.
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
    # 3. Checksums go into the run's record: a run resumes only on the same images.
    digests = {name: digest for name, source in opened.items() if (digest := source.digest())}
    whole = in_memory(train) if config.in_memory else train
    return TrainingImages(whole, evaluation, digests)


def make_reader(training: Training, source: Source, seed: int, mesh: Mesh) -> Reader:
    """A reader of one seed's batches; `seed` decides order and augmentation."""
    config = training.config
    rows = local_rows(mesh, config.batch_size)
    augment, transform = from_config.make_augment(config), from_config.make_transform(config)
    batches = loader.batches(
        source,
        config.batch_size,
        seed,
        # Without augmentation, images of training are prepared as those of evaluation.
        transform=None if augment else transform,
        augment=augment,
        rows=rows,
        synthetic_weight=config.get("synthetic_weight"),
        repeats=config.get("repeats", 1),
    )
    workers = count_workers(
        config.get("loader_workers", 0),
        len(rows) * math.prod(training.image_shape),
        readers=config.seeds if config.get("vmap_seeds") else 1,  # they share the CPUs
    )
    return functools.partial(loader.iterate, batches, workers=workers)
