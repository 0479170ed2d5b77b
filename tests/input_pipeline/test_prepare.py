"""Copies of images that are read faster: the same images, labels, order and names, resized."""

import json
import resource
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from input_pipeline import prepare
from input_pipeline.sources import load
from input_pipeline.sources.image_folder import ImageFolder
from tests.support.image_folder import encoded, picture

CONFIG = """
from ml_collections import ConfigDict
def get_config(path):
    folder = dict(name="image_folder", path=path)
    return ConfigDict(dict(a=dict(real=folder, grey=dict(name="digits", split="train")), n=3))
"""
SHAPES = [(30, 40), (50, 20), (12, 16), (20, 20), (21, 33), (40, 31)]


@pytest.fixture
def images(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "PER_SHARD", 4)
    folder = tmp_path / "images"
    for i, shape in enumerate(SHAPES):
        # The name of one is no UTF-8, as it can be in what others have packed.
        path = folder / "ab"[i % 2] / (f"{i}.png" if i else "\udce9.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(*shape, seed=i)))
    (tmp_path / "config.py").write_text(CONFIG)
    return folder


def run(images, *options, source="a.real"):
    config, to = images.parent / "config.py", images.parent / "copy"
    argv = [f"--config={config}:{images}", f"--source={source}", f"--to={to}", "--size=20"]
    return prepare.run(["prepare", *argv, "--workers=1", *options])


def copy_of(images):
    return load(dict(name="tfds", path=str(images.parent / "copy"), split="train"))


@pytest.mark.parametrize(("option", "error"), [("--raw", 0), ("--quality=100", 3)])
def test_a_copy_is_the_source_resized(images, option, error):
    assert run(images, option) == 0
    source, copy = ImageFolder(images), copy_of(images)
    assert copy.class_names == source.class_names and len(copy) == len(source) == 6
    np.testing.assert_array_equal(copy.labels, source.labels)
    builder = tfds.builder_from_directory(images.parent / "copy")
    assert builder.info.supervised_keys == ("image", "label")
    opened = builder.as_data_source(split="train")
    for i, theirs in enumerate(opened):
        expected, found = prepare.shrink(source[i]["image"], 20), copy[i]
        assert min(expected.shape[:2]) == min(20, *source[i]["image"].shape[:2])
        assert found["label"] == source.labels[i] and copy.key(i) == source.key(i)
        difference = found["image"].astype(float) - expected
        assert np.sqrt(np.mean(difference**2)) <= error
        np.testing.assert_array_equal(theirs["image"], found["image"])


def test_it_goes_on_where_it_stopped(images, monkeypatch):
    write, written = prepare.Copy.write, []

    def stop(copy, shard):
        if shard == 1:
            raise OSError(28, "No space left on device")
        return write(copy, shard)

    monkeypatch.setattr(prepare.Copy, "write", stop)
    assert run(images, "--raw") == 2
    assert not (images.parent / "copy" / "dataset_info.json").exists()
    monkeypatch.setattr(prepare.Copy, "write", lambda copy, i: written.append(i) or write(copy, i))
    assert run(images, "--raw") == run(images, "--raw") == 0 and written == [1]
    # A shard that was cut short, or has no entry, is written again.
    copy = images.parent / "copy"
    shard = min(copy.glob("*.array_record-*"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    min(copy.glob("index/*1-of-*")).unlink()
    assert run(images, "--raw") == 0 and written == [1, 0, 1]
    assert shard.read_bytes() == whole


def test_a_full_disk_leaves_no_part_of_a_shard(images, capsys):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, hard))  # a shard has some 7 kB
    try:
        assert run(images, "--raw") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in capsys.readouterr().err
    copy = images.parent / "copy"
    assert not list(copy.glob("*record-*")) and not list(copy.glob(".*.tmp"))
    assert run(images, "--raw") == 0 and len(copy_of(images)) == 6


def test_processes_write_the_same(images):
    assert run(images) == 0
    alone = {p.name: p.read_bytes() for p in (images.parent / "copy").glob("*record-*")}
    shutil.rmtree(images.parent / "copy")
    assert run(images, "--workers=2") == 0
    assert alone == {p.name: p.read_bytes() for p in (images.parent / "copy").glob("*record-*")}


def _damage(images):
    (images / "b" / "1.png").write_bytes(b"no image")


def _other(images):
    run(images)
    (images / "a" / "x.png").write_bytes(encoded(picture(9, 9, seed=9)))


@pytest.mark.parametrize(
    ("before", "options", "source", "message"),
    [
        (
            None,
            [],
            "a.fake",
            "--source must be a field of the config, got a.fake: it has no 'fake'",
        ),
        (None, [], "n", "--source=n must be a source with a name, got 3"),
        (None, [], "n.x", "it has no 'x'"),
        (None, [], "a.grey", "--source must have images in colour, got 1 channel"),
        (None, ["--to=gs://b/c"], "a.real", "--to must be a local or mounted folder"),
        (None, ["--size=0"], "a.real", "--size"),
        (None, ["--config=none.py"], "a.real", "no such file: none.py"),
        (
            lambda i: (i.parent / "copy" / "x").mkdir(parents=True),
            [],
            "a.real",
            "must be an empty folder",
        ),
        (_damage, [], "a.real", "b/1.png: "),
        (lambda i: run(i), ["--raw"], "a.real", "with a different quality; choose another folder"),
        (_other, [], "a.real", "with a different labels, source;"),
    ],
)
def test_what_is_refused(images, capsys, before, options, source, message):
    if before:
        before(images)
    capsys.readouterr()
    assert run(images, *options, source=source) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if message in line]
    assert len(said) == 1


def test_synthetic_images_are_refused(images):
    source = ImageFolder(images)
    source.domain = np.ones(6, np.int32)
    with pytest.raises(prepare.InputError, match="--source has synthetic images"):
        prepare.Copy(source, images.parent / "copy", 20, 0)


def test_its_record_names_what_it_is_made_of(images):
    run(images)
    claim = json.loads((images.parent / "copy" / "prepared.json").read_text())
    assert claim["size"] == 20 and claim["source"] == ImageFolder(images).digest()
