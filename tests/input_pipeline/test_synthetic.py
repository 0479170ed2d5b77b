import numpy as np
import pytest
import tensorflow_datasets as tfds

from input_pipeline import examples, sources, synthetic
from input_pipeline.files import InputError
from input_pipeline.synthetic import SyntheticSource
from input_pipeline.tfrecord import TFRecordFile
from tests.input_pipeline.tiny_set import (
    IMAGES,
    LABELS,
    damage_shard,
    flip_byte,
    replace_shard,
    shard_path,
    truncate_shard,
    write,
    writer,
)


def test_records_are_those_of_tfds(complete):
    builder = tfds.builder_from_directory(complete)
    split = builder.info.splits["train"]
    assert split.num_examples == 12 and split.shard_lengths == [5, 5, 2]
    assert [path.name for path in split.filepaths] == [
        shard_path(complete, shard).name for shard in range(3)
    ]
    features = builder.info.features
    assert features["image"].shape == (4, 4, 3)
    assert features["label"].names == ["cat", "dog"]
    assert set(features) == {"image", "label", "class_name", "prompt", "index"}
    example = features.deserialize_example_np(TFRecordFile(split.filepaths[1])[3])
    np.testing.assert_array_equal(example.pop("image"), IMAGES[8])
    assert example == {"label": 1, "class_name": b"dog", "prompt": b"a dog", "index": 8}


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


def test_load_a_part(complete):
    spec = {"name": "synthetic", "path": str(complete)}
    assert len(sources.load(spec)) == 12
    part = sources.load({**spec, "copies": 2})
    assert part.labels.tolist() == [0, 0, 1] * 2
    np.testing.assert_array_equal(part[5]["image"], IMAGES[5])
    assert sources.load({**spec, "copies": 2, "per_class": 1}).labels.tolist() in ([0, 1], [1, 0])
    with pytest.raises(InputError, match="copies=5, but the set holds 4"):
        sources.load({**spec, "copies": 5})


def test_source_names_the_record_where_a_shard_ends(complete):
    truncate_shard(complete)
    with pytest.raises(InputError, match=r"-00001-of-00003: record 4 at byte .*: truncated"):
        SyntheticSource(complete)


def test_source_refuses_missing_and_longer_shards(complete):
    path = shard_path(complete, 2)
    path.write_bytes(path.read_bytes() + shard_path(complete, 0).read_bytes())
    with pytest.raises(InputError, match="00002-of-00003: 7 records instead of 2"):
        SyntheticSource(complete)
    path.unlink()
    with pytest.raises(InputError, match="00002-of-00003: no such shard"):
        SyntheticSource(complete)


def test_source_names_a_damaged_record(complete):
    damage_shard(complete)
    source = SyntheticSource(complete)
    np.testing.assert_array_equal(source[5]["image"], IMAGES[5])
    with pytest.raises(InputError, match=r"00001-of-00003: record 1 at byte .* damaged data"):
        source[6]


def test_source_refuses_a_record_of_another_image(complete):
    replace_shard(complete, 1, lambda records: records.reverse())
    with pytest.raises(InputError, match="record 0: not image 5"):
        SyntheticSource(complete)[5]


def test_verify_a_good_set(complete):
    assert synthetic.verify(complete) == {
        "num_examples": 12,
        "class_counts": {"cat": 8, "dog": 4},
        "missing": [],
        "double": [],
        "undecodable": [],
        "mislabelled": [],
        "ok": True,
    }


def test_verify_reports_what_checksums_cannot_see(complete):
    def forge(records):
        records[0] = records[4]  # index 9 instead of 5
        records[1]["image"] = [b"no image"]
        records[2]["image"] = [examples.encode_png(np.zeros((4, 5, 3), np.uint8))]
        records[3]["class_name"] = [b"cat"]  # of index 8, a dog

    replace_shard(complete, 1, forge)
    report = synthetic.verify(complete)
    assert report["missing"] == [5] and report["double"] == [9]
    assert report["undecodable"] == [6, 7] and report["mislabelled"] == [8]
    assert not report["ok"]
    with pytest.raises(InputError, match="record 1: no image"):
        SyntheticSource(complete)[6]


def test_verify_names_the_first_damaged_record(complete):
    damage_shard(complete)
    flip_byte(shard_path(complete, 2), 20)
    with pytest.raises(InputError, match=r"00001-of-00003: record 1 at byte \d+: damaged data"):
        synthetic.verify(complete)


def test_verify_names_a_record_without_a_field(complete):
    replace_shard(complete, 1, lambda records: records[2].pop("prompt"))
    with pytest.raises(InputError, match="00001-of-00003: record 2: no field 'prompt'"):
        synthetic.verify(complete)


def test_verify_compares_digests(complete):
    manifest = (complete / "manifest.json").read_bytes()
    replace_shard(complete, 1, lambda records: records[0].update(prompt=[b"a cot"]))
    (complete / "manifest.json").write_bytes(manifest)
    with pytest.raises(InputError, match="00001-of-00003: not the file of its index"):
        synthetic.verify(complete)


def test_verify_an_incomplete_set(tmp_path):
    write(writer(tmp_path), [0])
    with pytest.raises(InputError, match=r"not complete \(no manifest.json\)"):
        synthetic.verify(tmp_path)
