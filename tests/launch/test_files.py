import contextlib
import errno
import hashlib
import os
import stat
from pathlib import Path
from unittest import mock

import pytest

from launch import files
from launch.errors import InputError


def test_json_round_trip_leaves_only_the_file(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"b": [1, 2.5, None], "a": "ü"})
    assert files.read_json(path) == {"a": "ü", "b": [1, 2.5, None]}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_read_json_names_the_path(tmp_path):
    with pytest.raises(InputError, match=r"missing\.json: no such file"):
        files.read_json(tmp_path / "missing.json")


def test_an_error_while_writing_keeps_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a"
    files.write_atomic(path, b"old")
    with pytest.raises(RuntimeError), files.atomic_file(path) as file:
        file.write(b"half of the new")
        assert path.read_bytes() == b"old"
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_remove_temporaries_of_one_name(tmp_path):
    for name in (".a.json.123.tmp", ".a.jsonl.123.tmp", "a.json", ".a.json"):
        (tmp_path / name).touch()
    files.remove_temporaries(tmp_path, "a.json")
    assert {p.name for p in tmp_path.iterdir()} == {".a.jsonl.123.tmp", "a.json", ".a.json"}
    files.remove_temporaries(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"a.json", ".a.json"}


def test_cache_folder(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert files.cache_folder("jax") == Path("/cache/imagen_ft/jax")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert files.cache_folder("jax") == Path("/home/me/.cache/imagen_ft/jax")


def test_cache_folder_of_a_user_without_a_home(monkeypatch, tmp_path):
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", mock.Mock(side_effect=KeyError))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    base = tmp_path / f"cache-{os.getuid()}"
    assert files.cache_folder("jax") == base / "imagen_ft" / "jax"
    assert files.cache_folder("jax") == base / "imagen_ft" / "jax" and base.stat().st_mode & 63 == 0
    base.rename(tmp_path / "other")
    base.symlink_to(tmp_path / "other")
    with pytest.raises(InputError, match=f"{base} belongs to another user; set XDG_CACHE_HOME"):
        files.cache_folder("jax")


BAD_JSON = {
    "half": (b'{"a": ', "Expecting value"),
    "nested": (b"[" * 10**5, "it is nested too deeply"),
    "integer": (b"9" * 5000, "Exceeds the limit"),
    "not UTF-8": (b'"\xff"', "'utf-8' codec can't decode"),
    "empty": (b"", "Expecting value"),
}


@pytest.mark.parametrize(("data", "said"), BAD_JSON.values(), ids=BAD_JSON)
def test_what_is_not_json(tmp_path, data, said):
    (tmp_path / "bad.json").write_bytes(data)
    with pytest.raises(InputError, match=rf"bad\.json: not JSON \({said}") as error:
        files.read_json(tmp_path / "bad.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"count": 1}]', "must be a JSON object"),
        ('{"count": 1}', "has no valid 'names'"),
        ('{"count": "1", "names": []}', "has no valid 'count'"),
        ('{"count": 1, "names": null}', "has no valid 'names'"),
    ],
)
def test_json_of_another_kind(tmp_path, text, said):
    path = tmp_path / "a.json"
    path.write_text('{"count": 1.5, "names": []}')
    assert files.read_fields(path, count=int | float, names=list)["count"] == 1.5
    path.write_text(text)
    with pytest.raises(InputError, match=rf"a\.json {said}"):
        files.read_fields(path, count=int | float, names=list)


def test_sha256(tmp_path):
    data = bytes(range(256)) * 8192  # more than one block
    (tmp_path / "a").write_bytes(data)
    assert files.sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()


def test_differences_are_named_by_path_with_both_values():
    old = {"seed": 1, "unet": {"width": 4, "heads": [1, 2], "text": {}}, "gone": None, "kind": 2}
    assert files.differences(old, old) == {}
    new = {
        "seed": 1,
        "unet": {"width": 5, "heads": [1, 3]},
        "new": {"a": {"b": 0}},
        "kind": {"x": 1},
    }
    assert list(files.differences(old, new).items()) == [
        ("gone", (None, files.NOTHING)),
        ("kind", (2, {"x": 1})),
        ("new.a.b", (files.NOTHING, 0)),
        ("unet.heads", ([1, 2], [1, 3])),
        ("unet.width", (4, 5)),
    ]
    assert str(files.NOTHING) == "nothing"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP, errno.EIO])
def test_a_mount_that_syncs_no_folders(tmp_path, monkeypatch, number):
    fsync = os.fsync

    def refused(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refused)
    with pytest.raises(OSError) if number == errno.EIO else contextlib.nullcontext():
        files.write_atomic(tmp_path / "file", b"1")
    assert (tmp_path / "file").read_bytes() == b"1"


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """A power cut after the rename would else leave an empty file under it."""
    calls, fsync, replace = [], os.fsync, os.replace

    def sync(descriptor):
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        calls.append(("folder" if is_folder else "file", os.fstat(descriptor).st_size))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", lambda *names: calls.append("rename") or replace(*names))
    files.write_atomic(tmp_path / "a", b"123")
    assert calls[:2] == [("file", 3), "rename"] and calls[2][0] == "folder" and len(calls) == 3
