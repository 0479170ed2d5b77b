"""Small data sets in the layout of TFDS, written without TensorFlow, and ways to damage them."""

import contextlib

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from input_pipeline.records import tf_example
from input_pipeline.records.tfrecord import write_tfrecord
from tests.support.image_folder import encoded, picture

NAMES = ("ant", "bee", "cow")
FORMATS = ("tfrecord", "array_record")
SHARDS = {"train": (5, 4, 6), "validation": (3,)}


def image(split, i):
    return picture(6 + i % 3, 9, seed=i + 50 * (split == "validation"))


def label(i):
    return i * i % 3


def record(split, i, **changes):
    fields = {"image": encoded(image(split, i)), "label": label(i), "file_name": f"{split}_{i}.png"}
    return tf_example.encode_example({**fields, **changes})


def records(split):
    return [record(split, i) for i in range(sum(SHARDS[split]))]


def shard_path(folder, number=0, split="train"):
    (path,) = folder.glob(f"*-{split}.*-{number:05d}-of-*")
    return path


def write_shard(path, data, file_format):
    if file_format == "tfrecord":
        write_tfrecord(path, data)
        return
    with contextlib.closing(ArrayRecordWriter(str(path), "group_size:1")) as writer:
        for one in data:
            writer.write(one)


def write_set(
    base,
    file_format="tfrecord",
    *,
    name="insects",
    version="1.0.0",
    names=NAMES,
    fields=None,
    shards=SHARDS,
    data=records,
):
    """Writes base/name/version and returns it."""
    folder = base / name / version
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict(
        fields
        or {
            "image": tfds.features.Image(),
            "label": tfds.features.ClassLabel(names=list(names)),
            "file_name": tfds.features.Text(),
        }
    )
    identity = tfds.core.DatasetIdentity(
        name=name, version=tfds.core.Version(version), data_dir=str(folder), module_name=""
    )
    info = tfds.core.DatasetInfo(builder=identity, features=features)
    info.set_file_format(file_format)
    splits = [
        tfds.core.SplitInfo(name=split, shard_lengths=list(lengths), num_bytes=0)
        for split, lengths in shards.items()
    ]
    info.set_splits(tfds.core.SplitDict(splits))
    info.write_to_directory(folder)
    for split, lengths in shards.items():
        ends, written = np.cumsum(lengths), data(split)
        for number, (end, length) in enumerate(zip(ends, lengths, strict=True)):
            path = folder / f"{name}-{split}.{file_format}-{number:05d}-of-{len(lengths):05d}"
            write_shard(path, written[end - length : end], file_format)
    return folder
