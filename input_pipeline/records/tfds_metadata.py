"""The files that make a folder of shards a TFDS data set."""

import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from launch import files

VERSION = "1.0.0"


def image_features(
    class_names: Sequence[str],
    image_shape: Sequence[int | None],
    image_format: str | None,
    texts: Sequence[str] = (),
) -> dict[str, Any]:
    """TFDS's features of a record with the fields `image` and `label`.

    Args:
        class_names: the name of each label.
        image_shape: [h, w, c]; None where it differs.
        image_format: png or jpeg; None is any that readers know.
        texts: names of fields that are text.
    """
    # Not at the top: it takes half a second.
    import tensorflow_datasets as tfds

    image = tfds.features.Image(shape=tuple(image_shape), encoding_format=image_format)
    label = tfds.features.ClassLabel(names=list(class_names))
    return {"image": image, "label": label, **{name: tfds.features.Text() for name in texts}}


def generated_features(
    class_names: Sequence[str], image_shape: Sequence[int], image_format: str
) -> dict[str, Any]:
    """`image_features` of a generated set, which tells more of its images."""
    import tensorflow_datasets as tfds

    features = image_features(class_names, image_shape, image_format, ("class_name", "prompt"))
    return {**features, "index": tfds.features.Scalar(np.int64)}


def write_metadata(
    folder: epath.PathLike,
    name: str,
    features: Mapping[str, Any],
    shard_lengths: Sequence[int],
    num_bytes: int,
    description: str,
    homepage: str,
    file_format: str = "tfrecord",
) -> list[str]:
    """Writes `dataset_info.json`, `features.json` and the class names for TFDS.

    `tfds.builder_from_directory(folder)` opens it from then on, with a single split `train`.

    Args:
        folder: holds the shards `NAME-train.tfrecord-00000-of-0000N`.
        name: of the data set, as in the names of the shards.
        features: of a record, see `image_features`.
        shard_lengths: records in each shard.
        num_bytes: size of all shards.
        description: of the data set, for people.
        homepage: where they read more; without one TFDS would name a page of its own catalogue.
        file_format: of the shards, tfrecord or array_record.

    Returns:
        The names of the files.
    """
    import tensorflow_datasets as tfds

    # TFDS does not write atomically: let it write elsewhere, then move file by file.
    with tempfile.TemporaryDirectory(dir=files.temporary_folder()) as draft:
        identity = tfds.core.DatasetIdentity(
            name=name, version=tfds.core.Version(VERSION), data_dir=draft, module_name=""
        )
        info = tfds.core.DatasetInfo(
            builder=identity,
            description=description,
            homepage=homepage,
            features=tfds.features.FeaturesDict(dict(features)),
            supervised_keys=("image", "label"),
        )
        info.set_file_format(file_format)
        split = tfds.core.SplitInfo(
            name="train", shard_lengths=list(shard_lengths), num_bytes=num_bytes
        )
        info.set_splits(tfds.core.SplitDict([split]))
        info.write_to_directory(draft)
        paths = sorted(epath.Path(draft).iterdir())
        for path in paths:
            files.write_atomic(epath.Path(folder) / path.name, path.read_bytes())
    return [path.name for path in paths]
