import hashlib
from pathlib import Path

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
    (tmp_path / "half.json").write_text('{"a": ')
    with pytest.raises(InputError, match=r"half\.json: not JSON") as error:
        files.read_json(tmp_path / "half.json")
    assert "\n" not in str(error.value)


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
