import json
import shutil
import subprocess
import sys
import tarfile

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from filelock import FileLock

from input_pipeline.sources.image_folder import ImageFolder
from input_pipeline.synthetic import __main__
from tests.input_pipeline.synthetic.tiny_set import (
    IMAGES,
    LABELS,
    contents,
    damage_shard,
    replace_shard,
    write,
    writer,
)

NAMES = ("cat", "dog")


def change_record(folder, **fields):
    """Changes record 1 of shard 1; all digests are right."""
    replace_shard(folder, 1, lambda records: records[1].update(fields))


def export(folder, kind, to):
    return __main__.run(["synthetic", f"--set={folder}", f"--export={kind}", f"--to={to}"])


def test_folder(complete, tmp_path):
    assert export(complete, "folder", tmp_path / "out") == 0
    found = ImageFolder(tmp_path / "out")
    assert found.class_names == NAMES and len(found) == 12
    for index, label in enumerate(LABELS):
        data = (tmp_path / "out" / NAMES[label] / f"{index:08d}.png").read_bytes()
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        np.testing.assert_array_equal(image, IMAGES[index])


def test_webdataset(complete, tmp_path):
    assert export(complete, "webdataset", tmp_path / "out") == 0
    members = {}
    for path in sorted((tmp_path / "out").glob("tiny-00000[0-2].tar")):
        with tarfile.open(path) as tar:
            names = tar.getnames()
            # Readers group neighbours of one name.
            assert [name.split(".")[1] for name in names] == ["png", "cls", "json"] * (
                len(names) // 3
            )
            members |= {name: tar.extractfile(name).read() for name in names}
    assert len(members) == 36
    for index, label in enumerate(LABELS):
        image = cv2.imdecode(np.frombuffer(members[f"{index:08d}.png"], np.uint8), cv2.IMREAD_COLOR)
        np.testing.assert_array_equal(image[..., ::-1], IMAGES[index])
        assert members[f"{index:08d}.cls"] == str(label).encode()
        assert json.loads(members[f"{index:08d}.json"]) == {
            "label": label,
            "class_name": NAMES[label],
            "prompt": f"a {NAMES[label]}",
            "index": index,
        }


def test_array_record_is_a_data_source_of_tfds(complete, tmp_path):
    assert export(complete, "array_record", tmp_path / "out") == 0
    builder = tfds.builder_from_directory(tmp_path / "out")
    assert builder.info.supervised_keys == ("image", "label")
    assert (tmp_path / "out" / builder.info.homepage).exists()
    source = builder.as_data_source(split="train")
    assert len(source) == 12
    for example in source:
        index = example["index"]
        np.testing.assert_array_equal(example["image"], IMAGES[index])
        assert example["label"] == LABELS[index]


@pytest.mark.parametrize("kind", sorted(__main__.WRITERS))
def test_an_export_goes_on_where_it_stopped(complete, tmp_path, monkeypatch, kind):
    assert export(complete, kind, tmp_path / "whole") == 0
    write_one = __main__.WRITERS[kind]

    def stop(export, shard):
        if shard == 1:
            raise OSError(28, "No space left on device")
        write_one(export, shard)

    monkeypatch.setitem(__main__.WRITERS, kind, stop)
    assert export(complete, kind, tmp_path / "out") == 2
    monkeypatch.setitem(__main__.WRITERS, kind, write_one)
    assert export(complete, kind, tmp_path / "out") == 0
    if kind != "array_record":
        assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert set(contents(tmp_path / "out")) == set(contents(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda f, to: damage_shard(f), "record 1 at byte"),
        (lambda f, to: to.mkdir() or (to / "x").touch(), "is not empty"),
        (lambda f, to: export(f, "folder", to), "has another export"),
        (lambda f, to: (f / "manifest.json").unlink(), "not complete"),
        (
            lambda f, to: change_record(f, class_name=[b"../cat"]),
            "record 1 must be image 8 of this set",
        ),
        (lambda f, to: change_record(f, label=[2]), "record 1 must be image 8 of this set"),
        (lambda f, to: change_record(f, index=[-1]), "record 1 must be image 8 of this set"),
        (lambda f, to: change_record(f, prompt=[b"\xff"]), "record 1: its prompt must be text"),
    ],
)
def test_wrong_input(complete, tmp_path, capsys, prepare, message):
    to = tmp_path / "out"
    prepare(complete, to)
    capsys.readouterr()
    assert export(complete, "webdataset", to) == 2
    said = capsys.readouterr().err.splitlines()
    assert message in said[-1] and said[-1].startswith("error: ")


@pytest.mark.parametrize(
    ("class_names", "said"),
    [
        (("a/b", "a_b"), "two classes would share a folder"),
        (("classes.txt", "b"), "class 'classes.txt' would have the name of another file"),
        (("export.json", "b"), "class 'export.json' would have the name of another file"),
        (("a", "ä" * 128), "too long for a folder name"),
        (("a", "two\u2028lines"), "is not one line of text"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_classes_that_can_have_no_folder(tmp_path, capsys, class_names, said):
    made = writer(tmp_path / "set", class_names=class_names)
    write(made, made.pending_shards())
    made.finish()
    assert export(tmp_path / "set", "folder", tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert export(tmp_path / "set", "webdataset", tmp_path / "out") == 0


def test_an_export_that_was_killed_at_its_start(complete, tmp_path):
    (tmp_path / "out").mkdir()
    for name in (".lock", ".export.json.0123.tmp"):
        (tmp_path / "out" / name).touch()
    assert export(complete, "webdataset", tmp_path / "out") == 0
    assert not list((tmp_path / "out").glob("*.tmp"))


def test_one_process_at_a_time(complete, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    assert export(complete, "folder", tmp_path / "first") == 0
    shutil.copy(tmp_path / "first" / "export.json", tmp_path / "out")
    with FileLock(tmp_path / "out" / ".lock"):
        assert export(complete, "folder", tmp_path / "out") == 2
    assert "in use by another process" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".lock", "export.json"]


def test_help(request):
    command = [sys.executable, "-m", "input_pipeline.synthetic", "--help"]
    done = subprocess.run(command, cwd=request.config.rootpath, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr
    assert "python -m input_pipeline.synthetic --set=runs/synthetic" in done.stdout
    assert "<array_record|folder|webdataset>: the format" in done.stdout


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--set=set", "--to=out"], "--export is missing"),
        (["--set=set", "--to=out", "--export=zip"], "<array_record|folder|webdataset>"),
        (["--set=set", "--to=out", "--export=folder", "more"], "'more' is not a flag"),
    ],
)
def test_wrong_flags(capsys, argv, said):
    assert __main__.run(["synthetic", *argv]) == 2
    err = capsys.readouterr().err
    assert said in err and err.startswith("error: command line: ") and err.count("\n") == 1
