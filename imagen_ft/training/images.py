"""The images that a stage is trained on and watched with, and how they come to its size."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from imagen_ft.text import class_names
from imagen_ft.training.training import Training
from input_pipeline import sources
from input_pipeline.augment.crop import central_crop, random_crop
from input_pipeline.augment.flip import random_flip
from input_pipeline.augment.resize import square
from input_pipeline.batches.loader import Augment, Example, Transform
from input_pipeline.source import Source
from launch.errors import InputError


@dataclasses.dataclass(frozen=True)
class Images:
    """Opened sources.

    Attributes:
        train: what is drawn from.
        evaluation: what is held out; its classes are the same.
        prompts: one a class.
    """

    train: Source
    evaluation: Source
    prompts: tuple[str, ...]


def open_images(training: Training) -> Images:
    """Opens `config.train_source` and `config.evaluation_source`.

    Raises:
        InputError: see `sources.load`; or they do not fit the stage, its class names or each other.
    """
    config = training.config
    train = sources.load(config.train_source)
    prompts = class_names.resolve(config.class_names, train.class_names)
    channels = train[0]["image"].shape[-1]
    if channels != training.denoiser.channels:
        raise InputError(
            f"config.stage.channels={training.denoiser.channels}, but the images of "
            f"config.train_source have {channels}"
        )
    evaluation = sources.load(config.evaluation_source)
    if evaluation.class_names != train.class_names:
        raise InputError(
            f"config.evaluation_source has {len(evaluation.class_names)} classes, not the "
            f"{len(train.class_names)} of config.train_source: "
            f"{_difference(evaluation.class_names, train.class_names)}"
        )
    return Images(train, evaluation, prompts)


def _difference(names: Sequence[str], other_names: Sequence[str]) -> str:
    odd = sorted(set(names) ^ set(other_names))
    return f"{odd[0]} is in one of them only" if odd else "they come in another order"


def training_transform(training: Training) -> Transform:
    """Brings an image to the size of the stage."""
    return functools.partial(_resize, size=training.config.stage.size)


def training_augment(training: Training) -> Augment | None:
    """A random part of the image where the stage is trained on parts, at random mirrored."""
    config = training.config
    crop, flip = config.get("crop_size", 0), config.get("flip", False)
    if not (crop or flip):
        return None
    return functools.partial(_crop_and_flip, size=config.stage.size, crop=crop, flip=flip)


def evaluation_transform(training: Training) -> Transform:
    """Brings an image to size; of a stage that is trained on parts it is the part in the middle."""
    sizes = dict(size=training.config.stage.size, crop=training.denoiser.size)
    return functools.partial(_resize_and_crop, **sizes)


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
