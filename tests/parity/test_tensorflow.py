"""Our records against TensorFlow's own reader and TFDS's own writer.

Both live in an environment of their own, made once under `.cache/` by pip: nothing of the project
imports TensorFlow.
"""

import io
import os
import subprocess
import sys
import venv

import numpy as np
import PIL.Image
import pytest

from input_pipeline.sources.tfds import TfdsSource
from tests.input_pipeline.synthetic.tiny_set import IMAGES, LABELS, of_shard, write, writer
from tests.support import ROOT
from tests.support.image_folder import picture

pytestmark = pytest.mark.slow  # Installing TensorFlow takes two minutes, importing it ten seconds.

# TFDS needs the last one to write a set and does not say so.
PACKAGES = ("tensorflow-cpu>=2.20,<3", "tensorflow-datasets>=4.9.10,<5", "importlib_resources")
FORMATS = ("tfrecord", "array_record")
SPLITS = ("train", "train[20%:70%]", "train[-3:]+validation", "train[1shard]")
COUNTS = {"train": 40, "validation": 7}

READ_OURS = """
import glob, sys
import numpy as np, tensorflow as tf, tensorflow_datasets as tfds

data_dir, out = sys.argv[1:]
in_order = tfds.ReadConfig(interleave_cycle_length=1)
builders = {
    "load": tfds.load("tiny", split="train", data_dir=data_dir, read_config=in_order),
    "builder": tfds.builder_from_directory(data_dir + "/tiny/1.0.0").as_dataset(
        split="train", read_config=in_order
    ),
}
found = {}
for name, dataset in builders.items():
    rows = list(dataset.as_numpy_iterator())
    for key in ("image", "label", "class_name", "prompt", "index"):
        found[f"{name}/{key}"] = np.stack([row[key] for row in rows])
shards = sorted(glob.glob(data_dir + "/tiny/1.0.0/*.tfrecord-*"))
records = [record for record in tf.data.TFRecordDataset(shards).as_numpy_iterator()]
examples = [tf.train.Example.FromString(record).features.feature for record in records]
found["records/image"] = np.stack(
    [tf.io.decode_png(example["image"].bytes_list.value[0]).numpy() for example in examples]
)
found["records/label"] = np.array([example["label"].int64_list.value[0] for example in examples])
np.savez(out, **found)
"""

WRITE_THEIRS = """
import sys
import numpy as np, tensorflow as tf, tensorflow_datasets as tfds

data_dir, images, out, file_format, kind, *splits = sys.argv[1:]
given = np.load(images)
features = tfds.features.FeaturesDict({
    "file_name": tfds.features.Text(),
    "image": tfds.features.Image(encoding_format=kind),
    "label": tfds.features.ClassLabel(names=["red", "green", "blue"]),
})

def examples(split, count):
    for i in range(count):
        path = f"{images}.{split}.{i}.{kind}"
        yield i, {"file_name": f"{split}_{i}", "image": path, "label": i * i % 3}

builder = tfds.dataset_builders.store_as_tfds_dataset(
    "theirs_" + kind, "1.2.3", features,
    {name: list(examples(name, int(given[name]))) for name in given},
    data_dir=data_dir, file_format=file_format,
    download_config=tfds.download.DownloadConfig(num_shards=3),
)
found = {}
in_order = tfds.ReadConfig(interleave_cycle_length=1)
for split in splits:
    if file_format == "tfrecord":
        rows = builder.as_dataset(split=split, read_config=in_order).as_numpy_iterator()
    else:
        encoded = {"image": tfds.decode.SkipDecoding()}
        rows = builder.as_data_source(split=split, decoders=encoded)
    for i, row in enumerate(rows):
        image = row["image"]
        if file_format == "array_record":
            image = tf.io.decode_image(image, channels=3).numpy()
        found[f"{split}/{i}/image"] = image
        found[f"{split}/{i}/label"] = row["label"]
        found[f"{split}/{i}/file_name"] = np.array(row["file_name"])
np.savez(out, **found)
"""


@pytest.fixture(scope="module")
def python():
    """An interpreter that has TensorFlow."""
    folder = ROOT / ".cache" / "tensorflow"
    found, ready = folder / "bin" / "python", folder / "ready"
    wanted = " ".join(PACKAGES)
    if not ready.exists() or ready.read_text() != wanted:
        venv.create(folder, with_pip=True, clear=True)
        run(found, "-m", "pip", "install", "-q", *PACKAGES)
        ready.write_text(wanted)
    return found


def run(*command):
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=quiet)
    if done.returncode:
        pytest.fail(done.stdout + done.stderr, pytrace=False)


def test_this_process_has_no_tensorflow():
    assert "tensorflow" not in sys.modules


def test_tensorflow_reads_our_set(tmp_path, python):
    ours = writer(tmp_path / "tiny" / "1.0.0")
    write(ours, ours.pending_shards())
    ours.finish()
    run(python, "-c", READ_OURS, tmp_path, tmp_path / "found.npz")
    found = np.load(tmp_path / "found.npz")
    order = np.concatenate([of_shard(shard) for shard in range(3)])
    labels = [LABELS[index] for index in order]
    names = [b"cat" if label == 0 else b"dog" for label in labels]
    for reader in ("load", "builder", "records"):
        np.testing.assert_array_equal(found[f"{reader}/image"], IMAGES[order])
        assert found[f"{reader}/label"].tolist() == labels
    for reader in ("load", "builder"):
        assert found[f"{reader}/class_name"].tolist() == names
        assert found[f"{reader}/prompt"].tolist() == [b"a " + name for name in names]
        assert found[f"{reader}/index"].tolist() == order.tolist()


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_we_read_what_tfds_writes(tmp_path, python, file_format, kind):
    images, out = tmp_path / "images.npz", tmp_path / "found.npz"
    for split, count in COUNTS.items():
        for i in range(count):
            file = io.BytesIO()
            PIL.Image.fromarray(picture(20 + i, 31, seed=i)).save(file, kind)
            (tmp_path / f"images.npz.{split}.{i}.{kind}").write_bytes(file.getvalue())
    np.savez(images, **COUNTS)
    run(python, "-c", WRITE_THEIRS, tmp_path, images, out, file_format, kind, *SPLITS)
    found, folder = np.load(out), tmp_path / f"theirs_{kind}" / "1.2.3"
    assert len(list(folder.glob(f"*-train.{file_format}-*-of-00003"))) == 3
    for split in SPLITS:
        source = TfdsSource(folder, split)
        assert source.class_names == ("red", "green", "blue")
        theirs = sum(name.startswith(f"{split}/") for name in found.files) // 3
        assert len(source) == theirs > 0
        for i in range(theirs):
            assert source.key(i) == found[f"{split}/{i}/file_name"].item().decode()
            assert source.labels[i] == source[i]["label"] == found[f"{split}/{i}/label"]
            image, expected = source[i]["image"], found[f"{split}/{i}/image"]
            assert image.shape == expected.shape
            # TensorFlow decodes JPEG with the faster, rougher of libjpeg's transforms.
            tolerance = 0 if kind == "png" else 4
            assert np.abs(image.astype(int) - expected).max() <= tolerance
