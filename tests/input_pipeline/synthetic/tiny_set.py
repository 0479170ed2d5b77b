"""A synthetic set of 12 images in 3 shards, and ways to damage it."""

import numpy as np

from input_pipeline.records import tf_example
from input_pipeline.records.tfrecord import TFRecordFile, write_tfrecord
from input_pipeline.synthetic.plan import Plan
from input_pipeline.synthetic.writer import SyntheticWriter
from launch import files
from tests.support.synthetic_set import write_shard

CONFIG = {
    "name": "tiny",
    "class_names": ("cat", "dog"),
    "image_shape": (4, 4, 3),
    "counts": [2, 1],
    "copies": 4,
    "images_per_shard": 5,
    "provenance": {"seed": 0, "stages": {"base": [1.25, 0.0]}},
}
LABELS = [0, 0, 1] * 4
IMAGES = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3), np.uint8)


def writer(folder, **changes):
    return SyntheticWriter(folder, **{**CONFIG, **changes})


def write(writer, shards):
    for shard in shards:
        indices = writer.plan.indices(shard)
        prompts = [f"a {CONFIG['class_names'][LABELS[i]]}" for i in indices]
        write_shard(writer, shard, IMAGES[indices], prompts)


def of_shard(shard):
    """Indices of its images."""
    return Plan(tuple(CONFIG["counts"]), CONFIG["copies"], CONFIG["images_per_shard"]).indices(
        shard
    )


def contents(folder):
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def shard_path(folder, shard):
    return folder / f"tiny-train.tfrecord-{shard:05d}-of-00003"


def flip_byte(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def replace_shard(folder, shard, change):
    """Rewrites a shard with `change` applied to its list of records, all digests right."""
    path = shard_path(folder, shard)
    records = [tf_example.decode_example(data) for data in TFRecordFile(path)]
    change(records)
    written = write_tfrecord(path, [tf_example.encode_example(record) for record in records])
    manifest = files.read_sealed(folder / "manifest.json")
    found = dict(num_bytes=written.num_bytes, sha256=written.sha256)
    manifest["shards"][shard].update(found)
    files.write_sealed(folder / "manifest.json", manifest)
    sidecar = folder / f"index/{shard:05d}-of-00003.json"
    files.write_json(sidecar, files.read_json(sidecar) | found | {"lengths": written.lengths})


def damage_shard(folder):
    start = int(TFRecordFile(shard_path(folder, 1)).starts[1])
    flip_byte(shard_path(folder, 1), start + 32)  # data of record 1


def truncate_shard(folder):
    path = shard_path(folder, 1)
    path.write_bytes(path.read_bytes()[:-1])


def remove_shard(folder):
    shard_path(folder, 1).unlink()


def remove_sidecar(folder):
    (folder / "index/00001-of-00003.json").unlink()


def damage_sidecar(folder):
    (folder / "index/00001-of-00003.json").write_text("{")
