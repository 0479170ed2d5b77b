import re
import subprocess
import sys

import numpy as np
import pytest

from input_pipeline.records.tfrecord import TFRecordFile
from input_pipeline.synthetic.source import SyntheticSource
from launch import files
from launch.errors import InputError
from tests.input_pipeline.synthetic import tiny_set
from tests.input_pipeline.synthetic.tiny_set import (
    CONFIG,
    IMAGES,
    contents,
    shard_path,
    write,
    writer,
)
from tests.support.synthetic_set import write_shard


def test_sidecar_and_manifest(complete):
    assert sorted(contents(complete)) == [
        "dataset_info.json",
        "features.json",
        *(f"index/{shard:05d}-of-00003.json" for shard in range(3)),
        "label.labels.txt",
        "manifest.json",
        "provenance.json",
        *(f"tiny-train.tfrecord-{shard:05d}-of-00003" for shard in range(3)),
    ]
    path = shard_path(complete, 1)
    kept = {
        "num_examples": 5,
        "num_bytes": path.stat().st_size,
        "sha256": files.sha256(path),
    }
    lengths = [len(data) for data in TFRecordFile(path)]
    made = writer(complete)
    sidecar = files.read_json(complete / "index/00001-of-00003.json")
    assert sidecar == {"set": made.set_id, "lengths": lengths, **kept}
    manifest = files.read_sealed(complete / "manifest.json")
    assert manifest["shards"][1] == {"file": path.name, **kept}
    for name, digest in manifest["files"].items():
        assert files.sha256(complete / name) == digest
    assert set(manifest["files"]) == {"dataset_info.json", "features.json", "label.labels.txt"}
    assert manifest["class_counts"] == [8, 4] and manifest["num_examples"] == 12
    assert manifest["provenance"] == CONFIG["provenance"]
    assert writer(complete).pending_shards() == []


def test_resuming_gives_the_same_bytes(complete, tmp_path):
    folder = tmp_path / "resumed"
    write(writer(folder), [1])
    assert writer(folder).pending_shards() == [0, 2]
    write(writer(folder), [2])
    resumed = writer(folder)
    assert resumed.pending_shards() == [0]
    with pytest.raises(InputError, match="shards 0 are not written; run imagen_ft"):
        resumed.finish()
    with pytest.raises(InputError, match="not complete"):
        SyntheticSource(folder)
    write(resumed, [0])
    resumed.finish()
    assert resumed.pending_shards() == []
    assert contents(folder) == contents(complete)


KILLED = """
import os, signal, sys
from input_pipeline.records import tf_example
from tests.input_pipeline.synthetic import tiny_set as t
encode = tf_example.encode_example
def encode_or_die(values):
    if values["index"] == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(values)
tf_example.encode_example = encode_or_die
t.write(t.writer(sys.argv[1]), [0, 1, 2])
"""


def test_killed_while_writing(complete, tmp_path, request):
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, str(folder)]
    result = subprocess.run(command, cwd=request.config.rootpath, capture_output=True, text=True)
    assert result.returncode == -9, result.stderr
    assert len(list(folder.glob(".*.tmp"))) == 1  # the half shard, under no final name
    assert not shard_path(folder, 1).exists()
    resumed = writer(folder)
    assert resumed.pending_shards() == [1, 2]
    write(resumed, [1])
    assert not list(folder.glob(".*.tmp"))
    write(resumed, [2])
    resumed.finish()
    assert contents(folder) == contents(complete)


@pytest.mark.parametrize(
    "change",
    [
        {"lengths": [200] * 5},
        {"lengths": [200] * 4},
        {"lengths": ["200"] * 5},
        {"lengths": None},
        {"num_examples": 4},
        {"num_bytes": 1},
        {"sha256": 64 * "0"},
    ],
    ids=str,
)
def test_a_sidecar_that_does_not_fit_its_shard(complete, change):
    path = complete / "index/00001-of-00003.json"
    files.write_json(path, files.read_json(path) | change)
    assert writer(complete).pending_shards() == [1]


def test_finish_removes_stale_temporaries(complete):
    at_work = complete / f".{shard_path(complete, 1).name}.1.tmp"  # of another worker
    for path in (complete / ".manifest.json.1.tmp", at_work):
        path.touch()
    writer(complete).finish()
    assert list(complete.rglob("*.tmp")) == [at_work]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"provenance": {**CONFIG["provenance"], "seed": 1}}, "provenance.seed = 0 (now 1)"),
        (
            {"provenance": {"seed": 0, "stages": {"base": [1.0, 0.0]}}},
            "stages.base = [1.25, 0.0] (now",
        ),
        ({"images_per_shard": 6}, " images_per_shard = 5 (now 6);"),
        ({"copies": 3, "counts": [1, 1]}, "copies = 4 (now 3), counts = [2, 1] (now [1, 1]);"),
    ],
)
@pytest.mark.parametrize("claim", ["provenance.json", "manifest.json"])
def test_a_folder_of_another_configuration_is_refused(complete, change, named, claim):
    for name in {"provenance.json", "manifest.json"} - {claim}:
        (complete / name).unlink()
    before = contents(complete)
    with pytest.raises(InputError, match=re.escape(named)):
        writer(complete, **change)
    assert contents(complete) == before


def test_shards_of_unknown_origin_are_refused(complete):
    (complete / "manifest.json").unlink()
    (complete / "provenance.json").unlink()
    with pytest.raises(
        InputError,
        match=r"set has dataset_info\.json, but no provenance\.json, so it is not a synthetic set",
    ):
        writer(complete)


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(
        InputError, match=r" has README\.md, but no provenance\.json, so it is not a synthetic set"
    ):
        writer(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "Tiny-set"}, "lower-case"),
        ({"name": 181 * "a"}, "name must have at most 180 letters, got 181"),
        ({"class_names": ("cat", "cat")}, r"class_names must differ, got \['cat'\] twice"),
        ({"class_names": ("cat", " ")}, "class_names must not be empty .*got ' '"),
        ({"class_names": ("cat", "dog ")}, "end with spaces, got 'dog '"),
        (
            {"class_names": ("cat", "a\ndog")},
            r"class_names must be one line of text each, got 'a\\ndog'",
        ),
        (
            {"class_names": ("cat", "\ud800")},
            r"class_names must be one line of text each, got '\\ud800'",
        ),
        ({"counts": [1, 2, 3]}, "counts must be one for each of the 2 classes, got 3"),
        ({"counts": [0, 0]}, "not all 0"),
        ({"copies": 0}, "copies must be at least 1, got 0"),
        ({"copies": 10**9}, r"copies of \d+ images must make at most"),
        (
            {"images_per_shard": -1},
            "images_per_shard must be at least 1, or 0 for shards of 150 MB, got -1",
        ),
        ({"image_shape": (4, 4, 2)}, r"\[4, 4, 2\]"),
        ({"encoding": {"format": "gif"}}, "encoding .*gif"),
        ({"encoding": {"format": "png", "quality": 90}}, "encoding"),
        ({"encoding": {"format": "jpeg"}}, "encoding"),
        ({"encoding": {"format": "jpeg", "quality": 101}}, "encoding"),
    ],
)
def test_wrong_values_are_refused_before_anything_is_written(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        writer(tmp_path / "set", **change)
    assert not (tmp_path / "set").exists()


def test_write_shard_checks_its_images(tmp_path):
    opened = writer(tmp_path)
    with pytest.raises(ValueError, match="expected uint8"):
        write_shard(opened, 0, IMAGES[:5, :3], ["a"] * 5)
    with pytest.raises(ValueError, match="expected uint8"):
        write_shard(opened, 0, IMAGES[:5].astype(np.float32), ["a"] * 5)
    for images, prompts in ((4, 4), (5, 4), (4, 5), (6, 6)):
        with pytest.raises(ValueError, match="zip"):
            write_shard(opened, 0, IMAGES[:images], ["a"] * prompts)
    assert opened.pending_shards() == [0, 1, 2]


@pytest.mark.parametrize(
    "damage",
    [
        tiny_set.damage_shard,
        tiny_set.truncate_shard,
        tiny_set.remove_shard,
        tiny_set.remove_sidecar,
        tiny_set.damage_sidecar,
    ],
)
def test_a_damaged_shard_is_pending_again_and_can_be_repaired(complete, damage):
    before = contents(complete)
    damage(complete)
    opened = writer(complete)
    assert opened.pending_shards() == [1]
    write(opened, [1])
    assert not (complete / "manifest.json").exists()  # until finish, the set is not complete
    opened.finish()
    assert contents(complete) == before


def test_numpy_values_are_the_same_configuration(complete):
    provenance = {"seed": np.int64(0), "stages": {"base": np.array([1.25, 0.0])}}
    assert writer(complete, counts=np.array([2, 1]), provenance=provenance).sidecars()[0]


def test_workers_share_the_shards(tmp_path):
    one, two = writer(tmp_path), writer(tmp_path)
    assert list(one.own_shards(0, 2)) == [0] and list(two.own_shards(1, 2)) == [1, 2]
    write(one, one.pending_shards(0, 2))
    assert one.shards_there() == {0} and two.pending_shards(1, 2) == [1, 2]
    with pytest.raises(InputError, match="shards 1, 2 are not written"):
        one.finish()
    write(two, [2, 1])
    two.finish()
    assert one.pending_shards() == []


def test_jpeg(tmp_path):
    made = writer(tmp_path, encoding={"format": "jpeg", "quality": 95})
    write(made, made.pending_shards())
    made.finish()
    example = SyntheticSource(tmp_path)[3]["image"]
    # Noise is what JPEG keeps worst: 16 levels are its rounding at this quality.
    assert np.abs(example.astype(int) - IMAGES[3]).mean() < 16
    assert TFRecordFile(shard_path(tmp_path, 0))[0].count(b"\xff\xd8\xff") == 1
    assert '"jpeg"' in (tmp_path / "features.json").read_text()


def test_a_damaged_claim_is_mended_where_the_shards_know_their_set(complete):
    before = contents(complete)
    for name in ("provenance.json", "manifest.json"):
        tiny_set.flip_byte(complete / name, 200)
    with pytest.raises(InputError, match=r"provenance\.json is damaged \(its checksum differs\)"):
        writer(complete)
    with pytest.raises(InputError, match=r"not a synthetic set"):
        writer(complete, repair=True, copies=5)
    made = writer(complete, repair=True)
    assert made.pending_shards() == []
    made.finish()
    assert contents(complete) == before
