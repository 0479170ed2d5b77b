import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from input_pipeline import sources
from input_pipeline.source import ArraySource
from input_pipeline.sources.digits import DIGIT_NAMES, _digit_splits, digits
from launch.errors import InputError

SPLITS = {"pool": 1000, "train": 30, "validation": 100, "test": 667}


def rows(images):
    return sorted(image.tobytes() for image in images)


@pytest.mark.parametrize("split", SPLITS)
def test_digits_split(split):
    source = digits(split)
    assert len(source) == len(source.labels) == len(source.domain) == SPLITS[split]
    assert source.class_names[0] == "zero" and source.class_names[9] == "nine"
    example = source[5]
    assert example["image"].shape == (8, 8, 1) and example["image"].dtype == np.uint8
    assert example["label"].dtype == example["domain"].dtype == np.int32
    assert example["label"] == source.labels[5] and example["domain"] == 0


def test_digits_have_names():
    pool = digits("pool")
    assert (pool.key(0), pool.key(999)) == ("pool:0", "pool:999")
    assert sources.load({"name": "digits", "split": "pool", "per_class": 1}).key(0) in {
        pool.key(i) for i in range(1000)
    }


def test_digits_are_the_whole_set_once():
    images = np.concatenate([digits(split).images for split in SPLITS])
    labels = np.concatenate([digits(split).labels for split in SPLITS])
    bunch = load_digits()
    # Together all 1,797, each as often as in the original: so the splits are disjoint.
    original = np.rint(bunch.images * 255 / 16).astype(np.uint8)
    assert original.max() == 255
    assert rows(images[..., 0]) == rows(original)
    pairs = sorted((image.tobytes(), label) for image, label in zip(images, labels, strict=True))
    truth = zip(original, bunch.target, strict=True)
    assert pairs == sorted((image.tobytes(), label) for image, label in truth)


def test_digits_are_stratified():
    whole = np.bincount(load_digits().target)
    counts = {split: np.bincount(digits(split).labels, minlength=10) for split in SPLITS}
    assert counts["train"].tolist() == [3] * 10
    assert counts["validation"].tolist() == [10] * 10
    for split in ("pool", "test"):
        assert np.abs(counts[split] - (whole - 13) * SPLITS[split] / 1667).max() < 1


def test_digits_do_not_change():
    # A change here changes every number that was ever reported on these splits.
    indices = _digit_splits()
    assert indices["train"][:8].tolist() == [5, 99, 113, 296, 332, 353, 455, 457]
    assert int(indices["test"].sum()) == 601085


def test_array_source_checks_its_arrays():
    images = np.zeros((3, 2, 2, 1), np.uint8)
    with pytest.raises(TypeError, match="2 labels"):
        ArraySource(images, np.zeros(2, np.int32), ("a",))
    with pytest.raises(TypeError, match="float64"):
        ArraySource(images / 2, np.zeros(3, np.int32), ("a",))


def test_load_digits():
    source = sources.load({"name": "digits", "split": "pool", "per_class": 2, "copies": None})
    assert np.bincount(source.labels).tolist() == [2] * 10
    assert source.class_names == DIGIT_NAMES


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "cifar"}, r"source\.name must be .*got 'cifar'"),
        ({}, "source.name must be one of .*, got None"),
        ({"name": "digits"}, "needs the field 'split'"),
        ({"name": "digits", "split": "all"}, "no split 'all'; use one of pool, test, train, valid"),
        ({"name": "digits", "split": "pool", "path": "x"}, "no field 'path'; use name, split, per"),
        (
            {"name": "digits", "split": "train", "per_class": 4},
            "class must be at most the 3 images of class 'zero', got 4",
        ),
        ({"name": "synthetic"}, "needs the field 'path'"),
        (
            {"name": "synthetic", "path": "/nowhere"},
            r"/nowhere is not complete \(it has no manifest\.json\)",
        ),
    ],
)
def test_load_refuses(spec, message):
    with pytest.raises(InputError, match=message):
        sources.load(spec)


def test_importing_sources_is_cheap(request):
    code = (
        "import sys, input_pipeline.sources;"
        "slow = {'tensorflow', 'tensorflow_datasets', 'pyarrow', 'grain', 'sklearn', 'jax'};"
        "print(*(slow & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=request.config.rootpath, capture_output=True, text=True
    )
    assert (result.returncode, result.stdout) == (0, "\n"), result.stderr
