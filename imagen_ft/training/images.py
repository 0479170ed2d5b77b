"""The images that a stage trains on and is evaluated with, at its size."""

import dataclasses
import functools

import numpy as np
from jax.sharding import Mesh

from imagen_ft.training.kept_latents import KeptLatents, pick_flip
from imagen_ft.training.prior import with_prior
from imagen_ft.training.training import Training
from input_pipeline import class_names, sources
from input_pipeline.augment.crop import central_crop, random_crop
from input_pipeline.augment.flip import random_flip
from input_pipeline.augment.resize import square
from input_pipeline.batches import loader
from input_pipeline.batches.workers import count_workers
from input_pipeline.source import Example, Source, Transform, check_same_classes
from launch.errors import InputError
from launch.runtime.devices.mesh import local_rows
from launch.runtime.types import Reader


@dataclasses.dataclass(frozen=True)
class TrainingImages:
    """Opened sources."""

    train: Source
    evaluation: Source  # held out; has the same classes
    digests: dict[str, str]  # checksum of `train`, if it can change, by its config field
    prompts: tuple[str, ...]  # one per class


def open_images(training: Training) -> TrainingImages:
    """Opens `config.train_source`, with `config.prior` beside it, and `config.evaluation_source`.

    Raises:
        InputError: see `sources.load`; or they do not fit the stage, its class names or each other.
    """
    config = training.config
    # 1. What is trained on.
    train = sources.load(config.train_source)
    prompts = class_names.resolve(config.class_names, train.class_names)
    channels = train[0]["image"].shape[-1]
    if channels != training.denoiser.image_channels:
        raise InputError(
            f"config.stage.channels={training.denoiser.image_channels}, but the images of "
            f"config.train_source have {channels}; set it to that"
        )
    # 2. What is held out.
    evaluation = sources.load(config.evaluation_source)
    check_same_classes(
        "config.train_source", train.class_names, "config.evaluation_source", evaluation.class_names
    )
    # 3. Synthetic images for prior preservation.
    if training.prior is not None:
        train = with_prior(config, train)
    digest = train.digest()
    return TrainingImages(train, evaluation, {"train_source": digest} if digest else {}, prompts)


def make_reader(training: Training, source: Source, mesh: Mesh) -> Reader:
    """Reads batches at the stage's size: resized, cropped and flipped, or kept latents."""
    # 1. This process's rows, and what happens to each image.
    config = training.config
    rows = local_rows(mesh, config.batch_size)
    size, crop, flip = training.image_size, config.get("crop_size", 0), config.get("flip", False)
    cut = functools.partial(_crop_and_flip, size=size, crop=crop, flip=flip)
    is_kept = isinstance(source, KeptLatents)
    # 2. The batches.
    batches = loader.batches(
        source,
        config.batch_size,
        config.seed,
        transform=None if is_kept else to_size(training),
        augment=pick_flip if is_kept else cut if crop or flip else None,
        rows=rows,
        synthetic_weight=training.prior.share if training.prior else None,
    )
    # 3. Worker processes, whose batches lie in shared memory.
    image_bytes = training.denoiser.image_size**2 * training.denoiser.image_channels
    workers = count_workers(config.get("loader_workers", 0), len(rows) * image_bytes)
    return functools.partial(loader.iterate, batches, workers=workers)


def to_size(training: Training) -> Transform:
    """Brings an image to the size of the stage's whole images."""
    return functools.partial(_resize, size=training.image_size)


def evaluation_transform(training: Training) -> Transform:
    """Brings an image to size; for a stage trained on crops, its central crop."""
    crop = training.denoiser.image_size
    return functools.partial(_resize_and_crop, size=training.image_size, crop=crop)


def _resize(example: Example, size: int) -> Example:
    return {**example, "image": square(example["image"], size)}


def _resize_and_crop(example: Example, size: int, crop: int) -> Example:
    return central_crop(_resize(example, size), crop)


def _crop_and_flip(
    example: Example, rng: np.random.Generator, size: int, crop: int, flip: bool
) -> Example:
    if crop and crop != size:
        example = random_crop(example, rng, crop)
    return random_flip(example, rng) if flip else example
