"""The metadata files that make a folder of shards a TFDS data set."""

import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from launch import files

VERSION = "1.0.0"  # TFDS needs one; it says nothing here


def image_features(
    class_names: Sequence[str],
    image_shape: Sequence[int | None],
    image_format: str | None,
    texts: Sequence[str] = (),
) -> dict[str, Any]:
    """TFDS's features of a record with `image`, `label` and the text fields `texts`.

    `image_shape` is [h, w, c] with None for sides that vary; `image_format` is png, jpeg, or None
    for any format.
    """
    # Imported late: it takes half a second.
    import tensorflow_datasets as tfds

    image = tfds.features.Image(shape=tuple(image_shape), encoding_format=image_format)
    label = tfds.features.ClassLabel(names=list(class_names))
    return {"image": image, "label": label, **{name: tfds.features.Text() for name in texts}}


def synthetic_features(
    class_names: Sequence[str], image_shape: Sequence[int], image_format: str
) -> dict[str, Any]:
    """`image_features` of a synthetic set, whose records have more fields."""
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
    """Writes `dataset_info.json`, `features.json` and the class names; returns the files' names.

    From then on `tfds.builder_from_directory(folder)` opens the set, with the single split `train`.

    Args:
        folder: holds the shards `NAME-train.FORMAT-00000-of-0000N`.
        name: of the data set, as in the names of the shards.
        features: of a record, see `image_features`.
        shard_lengths: records in each shard.
        num_bytes: of all shards together.
        description: for people.
        homepage: where to read more; without one TFDS would name a page of its own catalogue.
        file_format: tfrecord or array_record.
    """
    import tensorflow_datasets as tfds

    # TFDS does not write atomically, so it writes to a draft, which is then copied file by file.
    with tempfile.TemporaryDirectory(dir=files.temporary_folder()) as draft:
        # 1. What TFDS would otherwise take from a builder's code.
        identity = tfds.core.DatasetIdentity(
            name=name, version=tfds.core.Version(VERSION), data_dir=draft, module_name=""
        )
        info = tfds.core.DatasetInfo(
            builder=identity,
            description=description,
            homepage=homepage,
            features=tfds.features.FeaturesDict(dict(features)),
            # For `as_supervised=True`: (image, label).
            supervised_keys=("image", "label"),
        )
        info.set_file_format(file_format)
        # 2. The shards.
        split = tfds.core.SplitInfo(
            name="train", shard_lengths=list(shard_lengths), num_bytes=num_bytes
        )
        info.set_splits(tfds.core.SplitDict([split]))
        # 3. Write the draft, then each file under its name.
        info.write_to_directory(draft)
        paths = sorted(epath.Path(draft).iterdir())
        for path in paths:
            files.write_atomic(epath.Path(folder) / path.name, path.read_bytes())
    return [path.name for path in paths]
