import dataclasses

import numpy as np
import pytest

from input_pipeline.records import image_codec
from input_pipeline.synthetic.verify import verify
from launch.errors import InputError
from tests.input_pipeline.synthetic.tiny_set import (
    IMAGES,
    contents,
    damage_shard,
    flip_byte,
    of_shard,
    remove_shard,
    replace_shard,
    shard_path,
    write,
    writer,
)
from tests.support.damages import damages
from tests.support.synthetic_set import write_shard


def test_a_good_set(complete):
    read = []
    report = verify(complete, read.append)
    assert report.ok and report.shards == []
    many = dataclasses.replace(report, class_counts={str(k): k % 7 for k in range(1000)})
    summary = dict(count=1000, least=0, most=6, empty=143)
    assert many.as_json()["classes"] == summary and "class_counts" not in many.as_json()
    assert report.as_json() == {
        "ok": True,
        "num_examples": 12,
        "class_counts": {"cat": 8, "dog": 4},
        "faults": {},
        "shards_to_repair": 0,
    }
    assert read == [5, 5, 2]


def test_what_checksums_cannot_see(complete):
    indices = of_shard(1).tolist()
    wrong = [b"cat", b"dog"]

    def forge(records):
        records[0] = records[4]
        records[1]["image"] = [b"no image"]
        records[2]["image"] = [image_codec.encode_png(np.zeros((4, 5, 3), np.uint8))]
        records[3]["class_name"] = [wrong[1 - records[3]["label"][0]]]

    replace_shard(complete, 1, forge)
    report = verify(complete)
    assert report.faults["missing"] == [indices[0]]
    assert report.faults["double"] == [indices[4]]
    assert report.faults["undecodable"] == indices[1:3]
    assert report.faults["mislabelled"] == [indices[3]]
    assert not report.ok and report.shards == [1]


def test_blank_images_are_told_and_not_made_again(complete):
    blank = image_codec.encode_png(np.full((4, 4, 3), 7, np.uint8))
    replace_shard(complete, 1, lambda records: records[2].update(image=[blank]))
    report = verify(complete)
    assert report.faults["blank"] == [of_shard(1)[2]] and not report.ok
    assert report.as_json()["faults"]["blank"] == {"count": 1, "first": [int(of_shard(1)[2])]}
    assert report.shards == []


def test_every_damaged_shard_is_named(complete):
    damage_shard(complete)
    flip_byte(shard_path(complete, 2), 20)
    report = verify(complete)
    assert report.shards == [1, 2]
    first, second = report.faults["damaged"]
    assert "00001-of-00003: record 1 at byte" in first
    assert "00002-of-00003: record 0 at byte 0" in second


def test_a_record_without_a_field(complete):
    replace_shard(complete, 1, lambda records: records[2].pop("prompt"))
    assert "record 2 has no field 'prompt'" in verify(complete).faults["damaged"][0]


def test_a_right_record_at_another_place(complete):
    replace_shard(complete, 1, lambda records: records.reverse())
    report = verify(complete)
    assert report.shards == [1] and "not its own" in report.faults["damaged"][0]


def test_an_incomplete_set(tmp_path):
    write(writer(tmp_path), [0])
    report = verify(tmp_path)
    assert report.shards == [1, 2] and len(report.faults["missing"]) == 7
    with pytest.raises(InputError, match="is not a synthetic set"):
        verify(tmp_path / "nothing")


def test_files_of_another_set(complete):
    other = complete / "tiny-train.tfrecord-00000-of-00009"
    other.write_bytes(shard_path(complete, 0).read_bytes())
    report = verify(complete)
    assert report.faults["foreign"] == [str(other)] and report.shards == []


def test_a_shard_of_another_set_of_the_same_shape(complete, tmp_path):
    other = writer(tmp_path / "other", provenance={"seed": 1})
    images = IMAGES[::-1]
    write_shard(other, 1, images[other.plan.indices(1)], ["a"] * 5)
    for path in (other.shard_path(1), other.sidecar_path(1)):
        target = complete / path.relative_to(tmp_path / "other")
        target.write_bytes(path.read_bytes())
    assert verify(complete).shards == [1]
    assert writer(complete).pending_shards() == [1]


def repair(folder):
    """As `imagen_ft.generate --repair` does."""
    made = writer(folder, repair=True)
    report = verify(folder)
    for shard in report.shards:
        made.discard(shard)
    (folder / "manifest.json").unlink(missing_ok=True)
    write(made, made.pending_shards())
    made.finish()


def test_random_damage_is_found_and_mended(complete):
    before, rng = contents(complete), np.random.default_rng(0)
    for _ in range(50):  # 200 by the command, in tests/imagen_ft/test_generate.py
        what = damages(complete, rng)
        try:
            assert not verify(complete).ok, what
        except InputError:
            assert not (complete / "provenance.json").exists(), what
        repair(complete)
        assert contents(complete) == before, what


@pytest.mark.parametrize("number", range(3))
def test_several_at_once(complete, number):
    before = contents(complete)
    rng = np.random.default_rng(number)
    remove_shard(complete)
    for _ in range(4):
        damages(complete, rng)
    assert not verify(complete).ok
    repair(complete)
    assert contents(complete) == before
