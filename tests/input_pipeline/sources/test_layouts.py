"""Images in the layouts that people have: read, or refused with what to do, in one line."""

import io
import json
import os
import subprocess
import tarfile
import zipfile

import numpy as np
import pyarrow.parquet as pq
import pytest

from input_pipeline import imagenet, sources
from input_pipeline.sources import parquet
from input_pipeline.sources.image_folder import _SORT
from launch.errors import InputError
from tests.input_pipeline.sources.test_parquet import table, write_files
from tests.support.image_folder import encoded, picture, write_folder

PNG = encoded(picture(5, 6))


def folder(path):
    return dict(name="image_folder", path=str(path))


def other_formats(path):
    kinds = {"a.webp": "WEBP", "b.BMP": "BMP", "c.gif": "GIF"}
    contents = {f"cat/{n}": encoded(picture(5, 6), kind) for n, kind in kinds.items()}
    return folder(write_folder(path, {**contents, "cat/Thumbs.db": b"of Windows"}))


def zipped(path, names, system):
    path.mkdir()
    with zipfile.ZipFile(path / "a.zip", "w") as archive:
        for name in names:
            info = zipfile.ZipInfo(name)
            info.filename, info.create_system = name, system
            archive.writestr(info, PNG)
    return folder(path / "a.zip")


def backslashes(path):
    return zipped(path, ["set\\cat\\1.png", "set\\dog\\2.png", "set\\dog\\3.png"], 0)


def dots(path):
    return zipped(path, ["./cat/1.png", "./dog/2.png", "dog/./3.png"], 3)


def snapshot(inner, split=None):
    def make(path):
        inside = path / inner
        inside.parent.mkdir(parents=True)
        write_files(inside, lengths=(3,))
        (path / "README.md").write_text("---")
        return dict(name="parquet", path=str(path), split=split)

    return make


def folders_of_splits(path):
    for split in ("train", "test"):
        inside = path / "default" / split
        inside.mkdir(parents=True)
        pq.write_table(table(0, 3), inside / "0000.parquet")
    return dict(name="parquet", path=str(path), split="train")


@pytest.mark.parametrize(
    "make",
    [
        other_formats,
        backslashes,
        dots,
        snapshot("data"),
        snapshot("data", "train"),
        snapshot("default/train", "train"),
        snapshot("train"),
        folders_of_splits,
    ],
)
def test_what_is_read(tmp_path, make):
    source = sources.load(make(tmp_path / "set"))
    assert len(source) == 3 and source.class_names[0] == "cat"
    assert [source[i]["image"].shape[-1] for i in range(3)] == [3] * 3


def tar(path, names, content=PNG):
    with tarfile.open(path, "w") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return folder(path)


def flat(path):
    return folder(write_folder(path, {"ILSVRC2012_val_00000001.JPEG": PNG}))


def other_archive(path):
    path.write_bytes(b"7z\xbc\xaf\x27\x1c")
    return folder(path)


def not_text(path):
    os.makedirs(os.fsencode(path) + b"/caf\xe9")
    return folder(path)


def foreign_shards(path):
    write_folder(path, {"train-00000-of-01024": b"", "validation-00000-of-00128": b""})
    return dict(name="tfds", path=str(path), split="train")


def several_folders(path):
    return dict(folders_of_splits(path), split=None)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda path: tar(path, ["n01440764.tar"]),
            "a tar of tars, one per class; mkdir set .* for f in",
        ),
        (lambda path: tar(path, ["./1.JPEG"]), "a tar of images without classes; mkdir set &&"),
        (
            lambda path: tar(path, ["imagenet-a/n01/1.jpg"]),
            "set: a tar, which has no random access",
        ),
        (lambda path: folder(write_folder(path, {"n01.tar": b""})), "for f in .*tar; do"),
        (
            lambda path: tar(path.with_name("a b"), ["n01/1.jpg"]),
            "mkdir 'a b' && tar -xf '.*a b' -C 'a b'",
        ),
        (other_archive, "neither a folder nor a zip; unpack it"),
        (flat, "has images, but no folders of classes; sort them"),
        (not_text, r"the name of folder 'caf\\udce9' is not UTF-8; rename it"),
        (foreign_shards, "has shards without dataset_info.json"),
        (several_folders, "Parquet files in default/test, default/train; use one"),
    ],
)
def test_what_is_refused(tmp_path, make, said):
    with pytest.raises(InputError, match=said) as raised:
        sources.load(make(tmp_path / "set"))
    assert "download it again" not in str(raised.value) and "\n" not in str(raised.value)


def test_the_advice_sorts_images(tmp_path):
    table = "ImageId,PredictionString\na,n02 1 2 3 4\nb,n01 1 2 3 4 n01 5 6 7 8\n"
    images = {"a.JPEG": PNG, "b.JPEG": PNG, "LOC_val_solution.csv": table.encode()}
    write_folder(tmp_path, images)
    subprocess.run(_SORT[_SORT.index("tail") :], shell=True, cwd=tmp_path, check=True)
    source = sources.load(folder(tmp_path))
    assert [source.key(i) for i in range(2)] == ["n01/b.JPEG", "n02/a.JPEG"]


def test_classes_of_imagenet_by_the_names_of_the_hub(tmp_path):
    names = list(imagenet.lemmas())
    ids = imagenet.wordnet_ids()
    assert len(names) == 1000 and names[134] == names[517] == "crane"
    source = sources.load(
        dict(name="parquet", path=str(write_files(tmp_path / "a", lengths=(3,), names=names)))
    )
    assert source.class_names == ids
    some = dict(name="parquet", path=str(tmp_path / "a"), classes=[names[2], ids[0]])
    assert sources.load(some).class_names == (ids[2], ids[0])
    with pytest.raises(InputError, match=r"classes must be some of n014.* got 'crane'"):
        sources.load(dict(some, classes=["crane"]))
    assert imagenet.canonical_names(["a fish", *names[1:]]) == ids
    swapped = [names[1], names[0], *names[2:]]
    assert imagenet.canonical_names(swapped) == tuple(swapped)
    assert imagenet.canonical_names(names[:-1]) == tuple(names[:-1])
    assert imagenet.canonical_names(list("ab" * 500)) == tuple("ab" * 500)
    shown = {"n01440764": "n01440764 (tench)", "n00000000": "n00000000", "seven": "seven"}
    assert [imagenet.in_words(name) for name in shown] == list(shown.values())


def test_row_groups_are_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_BATCH_ROWS", 2)
    for plain in (True, False):
        files = write_files(tmp_path / f"{plain}", lengths=(3,), plain=plain)
        source = sources.load(dict(name="parquet", path=str(files)))
        assert [column.num_chunks for column in source._group(0)] == [2]
        for i in range(3):
            np.testing.assert_array_equal(source[i]["image"], picture(5 + i % 4, 8, seed=i))


def test_home(tmp_path, monkeypatch):
    from launch.runtime import app

    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.py").write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config(data):\n"
        "    lists = dict(e=('~/x', dict(p=['~/y', 1])), f=('',))\n"
        "    return ConfigDict(dict(a=dict(path='~/x'), b=data, c='', d='~', **lists))\n"
    )
    argv = ["", "--config=~/c.py:~/y", "--config.c=~/z", "--workdir=~/run"]
    argv += ["--config.f=('~/u', '~/v')"]
    arguments = app.parse(argv)
    assert json.loads(arguments.config.to_json()) == {
        "a": {"path": f"{tmp_path}/x"},
        "b": f"{tmp_path}/y",
        "c": f"{tmp_path}/z",
        "d": "~",
        "e": [f"{tmp_path}/x", {"p": [f"{tmp_path}/y", 1]}],
        "f": [f"{tmp_path}/u", f"{tmp_path}/v"],
    }
    assert str(arguments.workdir) == f"{tmp_path}/run"
    os.mkdir(tmp_path / "photos")
    other_formats(tmp_path / "photos" / "a")
    assert len(sources.load(folder("~/photos/a"))) == 3
