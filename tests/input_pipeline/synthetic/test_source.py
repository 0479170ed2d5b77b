import numpy as np
import pytest
import tensorflow_datasets as tfds

from input_pipeline import sources
from input_pipeline.records.tfrecord import TFRecordFile
from input_pipeline.synthetic.card import CARD, make_card
from input_pipeline.synthetic.source import SyntheticSource
from input_pipeline.synthetic.verify import verify
from launch import files
from launch.errors import InputError
from tests.input_pipeline.synthetic.tiny_set import (
    IMAGES,
    LABELS,
    damage_shard,
    flip_byte,
    of_shard,
    replace_shard,
    shard_path,
    truncate_shard,
    writer,
)


def test_records_are_those_of_tfds(complete):
    builder = tfds.builder_from_directory(complete)
    split = builder.info.splits["train"]
    assert split.num_examples == 12 and split.shard_lengths == [5, 5, 2]
    assert [path.name for path in split.filepaths] == [
        shard_path(complete, shard).name for shard in range(3)
    ]
    assert builder.info.supervised_keys == ("image", "label")
    assert builder.info.description.startswith("12 images of 2 classes, 4x4 pixels, drawn by a ")
    assert builder.info.homepage == "README.md"  # not a page of TFDS's catalogue
    features = builder.info.features
    assert features["image"].shape == (4, 4, 3)
    assert features["label"].names == ["cat", "dog"]
    assert set(features) == {"image", "label", "class_name", "prompt", "index"}
    example = features.deserialize_example_np(TFRecordFile(split.filepaths[1])[3])
    index = int(of_shard(1)[3])
    np.testing.assert_array_equal(example.pop("image"), IMAGES[index])
    name = ("cat", "dog")[LABELS[index]].encode()
    prompt = b"a " + name
    label = LABELS[index]
    assert example == {"label": label, "class_name": name, "prompt": prompt, "index": index}


def test_source(complete):
    source = SyntheticSource(complete)
    assert len(source) == 12 and source.class_names == ("cat", "dog")
    assert source.labels.tolist() == LABELS and source.domain.tolist() == [1] * 12
    for i in (11, 0, 5, 4):
        example = source[i]
        np.testing.assert_array_equal(example["image"], IMAGES[i])
        assert (example["label"], example["domain"]) == (LABELS[i], 1)
        assert source.key(i) == str(i)
        assert example["label"].dtype == example["domain"].dtype == np.int32


def test_what_a_set_says_of_its_images(complete):
    source = SyntheticSource(complete)
    for i, record in enumerate(source.records()):
        np.testing.assert_array_equal(record.pop("image"), IMAGES[i])
        name = ("cat", "dog")[LABELS[i]]
        assert record == dict(label=LABELS[i], class_name=name, prompt=f"a {name}", index=i)
    assert i == 11
    dogs = np.flatnonzero(source.labels == 1)
    assert [record["class_name"] for record in source.records(dogs)] == ["dog"] * len(dogs)


def test_load_a_part(complete):
    spec = {"name": "synthetic", "path": str(complete)}
    assert len(sources.load(spec)) == 12
    part = sources.load({**spec, "copies": 2})
    assert part.labels.tolist() == [0, 0, 1] * 2
    np.testing.assert_array_equal(part[5]["image"], IMAGES[5])
    assert sources.load({**spec, "copies": 2, "per_class": 1}).labels.tolist() in ([0, 1], [1, 0])
    with pytest.raises(InputError, match="copies must be at most 4, as in the set, got 5"):
        sources.load({**spec, "copies": 5})


def test_source_names_a_shard_that_was_cut(complete):
    truncate_shard(complete)
    with pytest.raises(
        InputError, match=r"-00001-of-00003 must have \d+ bytes, got \d+; .*--repair"
    ):
        SyntheticSource(complete)


def test_source_refuses_missing_and_longer_shards(complete):
    path = shard_path(complete, 2)
    path.write_bytes(path.read_bytes() + shard_path(complete, 0).read_bytes())
    with pytest.raises(InputError, match=r"00002-of-00003 must have \d+ bytes, got"):
        SyntheticSource(complete)
    path.unlink()
    with pytest.raises(InputError, match="00002-of-00003: no such shard"):
        SyntheticSource(complete)


def test_source_names_a_damaged_record(complete):
    damage_shard(complete)
    source, indices = SyntheticSource(complete), of_shard(1)
    np.testing.assert_array_equal(source[indices[0]]["image"], IMAGES[indices[0]])
    with pytest.raises(InputError, match=r"00001-of-00003: record 1 at byte .* damaged data"):
        source[indices[1]]


def test_source_refuses_a_record_of_another_image(complete):
    replace_shard(complete, 1, lambda records: records.reverse())
    first = of_shard(1)[0]
    with pytest.raises(InputError, match=f"record 0 must be image {first}"):
        SyntheticSource(complete)[first]


def test_source_refuses_an_index_of_another_shard(complete):
    other = (complete / "index/00002-of-00003.json").read_bytes()
    (complete / "index/00001-of-00003.json").write_bytes(other)
    with pytest.raises(InputError, match=r"00001-of-00003\.json is not the index of its shard"):
        SyntheticSource(complete)[of_shard(1)[0]]


def test_source_refuses_a_damaged_manifest(complete):
    flip_byte(complete / "manifest.json", 100)
    with pytest.raises(InputError, match=r"manifest.json: .*--repair"):
        SyntheticSource(complete)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("counts", [10**18, 1], "counts, copies, images_per_shard must be numbers of images"),
        ("counts", [10**6, 1], "its shards have a different number of images"),
        ("counts", [-1, 1], "counts, copies, images_per_shard must be"),
        ("counts", ["1", 1], "counts, copies, images_per_shard must be"),
        ("copies", 10**12, "counts, copies, images_per_shard must be"),
        ("copies", 10**6, "its shards have a different number of images"),
        ("images_per_shard", 0, "counts, copies, images_per_shard must be"),
        ("images_per_shard", 10**6, "its shards have a different number of images"),
        ("shards", [], "its shards have a different number of images"),
        ("shards", 3, "is from another version of this project"),
    ],
)
def test_source_refuses_numbers_of_no_set(complete, field, value, said):
    path = complete / "manifest.json"
    files.write_sealed(path, {**files.read_sealed(path), field: value})
    with pytest.raises(InputError, match=rf"manifest\.json:? {said}"):
        SyntheticSource(complete)


@pytest.mark.parametrize("name", ["../x", "..", "", "a/b", "/etc/x", "a\\b"])
@pytest.mark.parametrize("where", ["name", "file", "shard"])
def test_names_lead_nowhere_else(complete, name, where):
    """A manifest comes from elsewhere, and an export is named after it."""
    path = complete / "manifest.json"
    manifest = files.read_sealed(path)
    if where == "name":
        manifest["name"] = name
    elif where == "file":
        manifest["files"] = {**manifest["files"], name: "0" * 64}
    else:
        manifest["shards"][0]["file"] = name
    files.write_sealed(path, manifest)
    with pytest.raises(InputError, match="must be a plain file name"):
        SyntheticSource(complete)
    assert any("must be a plain file name" in line for line in verify(complete).faults["damaged"])


def test_the_card_says_what_classes_are_called(complete):
    card = dict(make_card(writer(complete), {}))[CARD].decode()
    assert "images of one class: cat (a cat), dog (a dog)." in card
