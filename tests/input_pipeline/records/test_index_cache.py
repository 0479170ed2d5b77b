import os

import numpy as np
import pytest

from input_pipeline.records import index_cache
from input_pipeline.records.index_cache import CacheKey

COLUMNS = {
    "label": np.array([3, 1, 2], np.int32),
    "key": np.array([b"a", b"bcd", b""]),
    "place": np.arange(9).reshape(3, 3),
    "empty": np.zeros((0, 3)),
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "data" / "x"
    path.parent.mkdir()
    path.write_bytes(bytes(range(256)) * 1000)
    return CacheKey.of_file(str(path), "label")


def test_columns_come_back_one_by_one(shard):
    assert index_cache.load(shard, ("label",)) is None
    assert index_cache.save(shard, COLUMNS) is None
    for name, column in COLUMNS.items():
        found = index_cache.load(shard, (name,))[name]
        assert found.dtype == column.dtype and found.flags.writeable
        np.testing.assert_array_equal(found, column)
    assert sorted(index_cache.load(shard, ("key", "label"))) == ["key", "label"]


def test_it_answers_one_question_about_one_shard(shard, tmp_path):
    index_cache.save(shard, COLUMNS)
    assert index_cache.load(CacheKey.of_file(shard.path, "fine_label"), ("label",)) is None
    (index,) = (tmp_path / "data" / ".imagen_ft").iterdir()
    (tmp_path / "data" / "y").write_bytes(bytes(256_000))
    other = CacheKey.of_file(str(tmp_path / "data" / "y"), "label")
    os.rename(index, other.paths()[0])
    assert index_cache.load(other, ("label",)) is None


def rewritten(shard, data):
    """The shard with other content, of another time even where clocks are coarse."""
    with open(shard.path, "wb") as file:
        file.write(data)
    os.utime(shard.path, ns=(0, 10**18))
    return CacheKey.of_file(shard.path, shard.asked)


def test_a_shard_that_was_written_again(shard):
    index_cache.save(shard, COLUMNS)
    content = bytes(range(256)) * 1000
    assert index_cache.load(rewritten(shard, content), ("label",)) is not None
    assert index_cache.load(rewritten(shard, content[:-1]), ("label",)) is None
    assert index_cache.load(rewritten(shard, content[::-1]), ("label",)) is None
    assert index_cache.load(rewritten(shard, b"X" + content[1:]), ("label",)) is None
    assert index_cache.load(rewritten(shard, content[:-1] + b"X"), ("label",)) is None


def test_a_shard_that_goes_away(shard):
    os.remove(shard.path)
    with pytest.raises(FileNotFoundError):
        CacheKey.of_file(shard.path, "label")


def test_places(shard, tmp_path, monkeypatch):
    beside, in_cache = shard.paths()
    assert beside == tmp_path / "data" / ".imagen_ft" / "x.label.index"
    assert tmp_path / "cache" / "imagen_ft" / "index" in in_cache.parents
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert tmp_path / "home" / ".cache" / "imagen_ft" in shard.paths()[1].parents
    (tmp_path / "data" / ".imagen_ft").write_text("in the way")
    (tmp_path / "home").write_text("in the way")
    assert isinstance(index_cache.save(shard, COLUMNS), OSError)
    assert index_cache.load(shard, ("label",)) is None
