"""What a synthetic set contains: its classes and counts, and the fields that decide its images."""

from typing import Any

import ml_collections
import numpy as np

from imagen_ft.cascade import Cascade
from imagen_ft.cascade.provenance import provenance
from imagen_ft.cascade.starts import Starts
from input_pipeline import class_names, sources
from input_pipeline.sources.lacking import lacking_in_source
from launch import files
from launch.errors import InputError
from launch.runtime import app
from launch.runtime.config import plain
from launch.runtime.optional_fields import Defaults, below, unset


def real_counts(config: ml_collections.ConfigDict) -> tuple[tuple[str, ...], list[int]]:
    """The class names, and the number of images of each in the real set.

    They come from `real_source` or from `counts`, a JSON file {class: number}. Raises `InputError`
    if the config has neither or both, or if the classes are not those of `class_names`.
    """
    # 1. Count the labels of a real set.
    source, path = config.get("real_source"), config.get("counts")
    if bool(source) == bool(path):
        raise InputError("set either config.real_source or config.counts, for the number of images")
    if source:
        real = sources.load(source)
        names = tuple(real.class_names)
        class_names.resolve(config.class_names, names, "config.real_source")
        return names, np.bincount(real.labels, minlength=len(names)).tolist()
    # 2. Or read the counts.
    counts = files.read_object(path)
    wrong = [name for name, n in counts.items() if type(n) is not int or n < 0]
    if wrong:
        raise InputError(
            f"{path}: the count of {wrong[0]!r} must be a whole number of at least 0, got "
            f"{counts[wrong[0]]!r}"
        )
    names = class_names.resolve(config.class_names) or tuple(counts)
    if names != tuple(counts) and sorted(counts) != sorted(names):
        # Counts by WordNet id, whose sorted order is the order of ImageNet's labels.
        names = tuple(sorted(counts))
        class_names.resolve(config.class_names, names, path)
    return names, [counts[name] for name in names]


def lacking_in_set(config: ml_collections.ConfigDict) -> Defaults:
    """Fields that describe a synthetic set, and that a config lacks."""
    encoding = {"format": "png", "quality": unset(int), "size": 0}
    source = config.get("real_source") or {}
    return {
        **below("", config, {"images_per_shard": 0, "counts": unset(str)}),
        **below("encoding", config.get("encoding") or {}, encoding),
        **lacking_in_source("real_source", source),
    }


def set_fields(args: app.Arguments, cascade: Cascade, starts: Starts | None) -> dict[str, Any]:
    """Everything that decides the images of the set, as arguments of `SyntheticWriter`.

    `starts` are real images to start from; None: noise. Raises `InputError` if a field of the
    config is wrong, or a class has no real image to start from.
    """
    # 1. Classes and counts.
    config = args.config
    names, counts = real_counts(config)
    if starts is not None:
        starts.check_classes(names, counts)
    # 2. Encoding. Images may be stored smaller than the last stage draws them, not larger.
    stage = cascade.stages[-1]
    encoding = {"format": "png", **plain(config.get("encoding", {}))}
    size = encoding.pop("size", 0) or stage.image_size
    if not 1 <= size <= stage.image_size:
        raise InputError(
            f"config.encoding.size must be from 1 to the {stage.image_size} px that the cascade "
            f"draws, or 0 for that size, got {size}"
        )
    # 3. Any difference from the provenance of a set that exists is an error: a set never mixes
    # images of two cascades.
    return dict(
        name=config.name,
        class_names=names,
        image_shape=(size, size, stage.denoiser.image_channels),
        counts=counts,
        copies=config.copies,
        images_per_shard=config.get("images_per_shard", 0),
        provenance=provenance(config, cascade) | ({"start": starts.digest()} if starts else {}),
        encoding=encoding,
    )
