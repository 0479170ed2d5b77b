"""What a synthetic set holds: classes and counts, and the fields that decide its images."""

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
    """Names of the classes, and how many images the real set has of each.

    Args:
        config: `real_source`, or `counts`: a JSON file, class -> number; and `class_names`.

    Raises:
        InputError: they are not the config's classes, or neither or both of the fields are there.
    """
    source, path = config.get("real_source"), config.get("counts")
    if bool(source) == bool(path):
        raise InputError("give either config.real_source or config.counts for the number of images")
    if source:
        real = sources.load(source)
        names = tuple(real.class_names)
        class_names.resolve(config.class_names, names, "config.real_source")
        return names, np.bincount(real.labels, minlength=len(names)).tolist()
    counts = files.read_object(path)
    wrong = [name for name, n in counts.items() if type(n) is not int or n < 0]
    if wrong:
        raise InputError(
            f"{path}: the count of {wrong[0]!r} must be a whole number from 0, "
            f"got {counts[wrong[0]]!r}"
        )
    names = class_names.resolve(config.class_names) or tuple(counts)
    if names != tuple(counts) and sorted(counts) != sorted(names):
        names = tuple(sorted(counts))  # WordNet ids
        class_names.resolve(config.class_names, names, path)
    return names, [counts[name] for name in names]


def lacking_in_set(config: ml_collections.ConfigDict) -> Defaults:
    """Fields that say what a generated set is, and a config lacks."""
    encoding = {"format": "png", "quality": unset(int), "size": 0}
    source = config.get("real_source") or {}
    return {
        **below("", config, {"images_per_shard": 0, "counts": unset(str)}),
        **below("encoding", config.get("encoding") or {}, encoding),
        **lacking_in_source("real_source", source),
    }


def set_fields(args: app.Arguments, cascade: Cascade, starts: Starts | None) -> dict[str, Any]:
    """All that decides about the images of the set, as arguments of `SyntheticWriter`.

    Args:
        args: of the command.
        cascade: draws the images.
        starts: real images that it begins with; None is noise.

    Raises:
        InputError: a field of the config is wrong, or a class has no image to begin with.
    """
    config = args.config
    names, counts = real_counts(config)
    if starts is not None:
        starts.check_classes(names, counts)
    stage = cascade.stages[-1]
    encoding = {"format": "png", **plain(config.get("encoding", {}))}
    size = encoding.pop("size", 0) or stage.image_size
    if not 1 <= size <= stage.image_size:
        raise InputError(
            f"config.encoding.size must be from 1 to the {stage.image_size} px that the "
            f"cascade draws, or 0 for as many, got {size}"
        )
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
