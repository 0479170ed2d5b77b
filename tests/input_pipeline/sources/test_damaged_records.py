import concurrent.futures
import gc
import pickle

import numpy as np
import pytest

from input_pipeline import sources
from input_pipeline.source import ArraySource
from input_pipeline.sources import damaged_records
from input_pipeline.sources.damaged_records import SkipDamaged
from input_pipeline.synthetic.source import SyntheticSource
from launch.errors import InputError
from tests.input_pipeline.synthetic.tiny_set import IMAGES, LABELS, damage_shard, of_shard
from tests.support.image_folder import encoded, picture, write_folder


class Damaged(ArraySource):
    """Images whose pixel is their number; some cannot be read."""

    def __init__(self, labels, bad):
        images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
        super().__init__(images, np.array(labels), ("a", "b"))
        self.bad = set(bad)

    def __getitem__(self, i):
        if i in self.bad:
            raise InputError(f"shard: record {i}: damaged")
        return super().__getitem__(i)


def pixels(source):
    return [int(source[i]["image"][0, 0, 0]) for i in range(len(source))]


def test_the_next_of_the_same_class_stands_in():
    source = SkipDamaged(Damaged([0, 1, 0, 1, 0, 1], bad=[0, 5, 2]))
    assert pixels(source) == [4, 1, 4, 3, 4, 1]
    assert [int(source[i]["label"]) for i in range(6)] == source.labels.tolist() == [0, 1] * 3
    assert source.damaged == 3 and source.key(0) == "0"
    assert pixels(source) == [4, 1, 4, 3, 4, 1] and source.damaged == 3


def test_a_synthetic_image_does_not_stand_for_a_real_one():
    inner = Damaged([0] * 4, bad=[0])
    inner.domain = np.array([0, 1, 1, 0], np.int32)
    assert pixels(SkipDamaged(inner))[0] == 3


def test_what_is_said(capsys):
    source = SkipDamaged(Damaged([0] * 50, bad=range(1, 20, 2)))
    pixels(source)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4  # at 1, 2, 4 and 8
    assert lines[0] == (
        "on_damage=skip: 1 of 50 records are damaged; others of the same class replace them; "
        "now shard: record 1: damaged"
    )
    assert lines[3].startswith("on_damage=skip: 8 of 50 records")
    del source
    gc.collect()
    assert capsys.readouterr().err == (
        "on_damage=skip: 10 of 50 records are damaged; others of the same class replace them\n"
    )


def test_nothing_is_said_of_sound_records(capsys):
    assert pixels(SkipDamaged(Damaged([0] * 5, bad=[]))) == [0, 1, 2, 3, 4]
    gc.collect()
    assert capsys.readouterr().err == ""


def test_too_many_are_an_error():
    source = SkipDamaged(Damaged([0, 1, 1, 1], bad=[1, 2, 3]))
    assert int(source[0]["image"][0, 0, 0]) == 0
    with pytest.raises(
        InputError,
        match=r"3 records of class 'b' in a row are damaged, which is too many to skip.* record 1",
    ):
        source[1]
    many = SkipDamaged(Damaged([0] * 250, bad=range(120)))
    assert int(many[30]["image"][0, 0, 0]) == 120
    with pytest.raises(InputError, match="101 records of class 'a' in a row"):
        many[5]


def test_threads_count_each_record_once():
    source = SkipDamaged(Damaged([0] * 200, bad=range(0, 200, 3)))
    copy = pickle.loads(pickle.dumps(source))
    for one in (source, copy):
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            examples = list(pool.map(one.__getitem__, [*range(200)] * 5))
        found = [int(example["image"][0, 0, 0]) for example in examples]
        assert found == [i + (i % 3 == 0) for i in range(200)] * 5
        assert one.damaged == 67


def test_every_source_profits(complete, tmp_path):
    spec = {"name": "synthetic", "path": str(complete)}
    damage_shard(complete)
    bad = int(of_shard(1)[1])
    with pytest.raises(InputError, match="record 1 at byte"):
        sources.load(spec)[bad]
    source = sources.load({**spec, "on_damage": "skip"})
    stands_in = next(i for i in (*range(bad + 1, 12), *range(bad)) if LABELS[i] == LABELS[bad])
    np.testing.assert_array_equal(source[bad]["image"], IMAGES[stands_in])
    whole = SyntheticSource(complete)[stands_in]["image"]
    np.testing.assert_array_equal(source[stands_in]["image"], whole)
    named = {f"{c}/{i}.png": encoded(picture(8, 8, i)) for c in ("a", "b") for i in range(4)}
    write_folder(tmp_path / "images", {**named, "a/1.png": b"text"})
    spec = {"name": "image_folder", "path": str(tmp_path / "images"), "on_damage": "skip"}
    np.testing.assert_array_equal(sources.load(spec)[1]["image"], picture(8, 8, 2))


def test_no_held_out_image_stands_in(tmp_path):
    named = {f"{c}/{i:02}.png": encoded(picture(8, 8, i)) for c in ("a", "b") for i in range(10)}
    spec = {"name": "image_folder", "path": str(tmp_path), "split": "train", "held_out": 5}
    write_folder(tmp_path, named)
    allowed = {sources.load(spec)[i]["image"].tobytes() for i in range(10)}
    first = sources.load(spec).key(0)
    (tmp_path / first).write_bytes(b"")
    source = sources.load({**spec, "on_damage": "skip"})
    assert source.key(0) == first and source.damaged == 0
    assert source[0]["image"].tobytes() in allowed and source.damaged == 1


def test_without():
    source = Damaged([0, 1, 0], bad=[])
    assert damaged_records.leave_out(source, {}, "error") is source
    with pytest.raises(InputError, match="first"):
        damaged_records.leave_out(source, {2: "second", 1: "first"}, "error")
    assert pixels(damaged_records.leave_out(source, {1: "x"}, "skip")) == [0, 2]
    with pytest.raises(InputError, match=r"^x$"):
        damaged_records.leave_out(source, {0: "x", 1: "y", 2: "z"}, "skip")
