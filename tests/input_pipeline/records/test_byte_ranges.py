import fsspec
import pytest

from input_pipeline.records import byte_ranges
from input_pipeline.records.byte_ranges import Ahead
from launch.errors import InputError

DATA = bytes(range(256)) * 40


@pytest.fixture(params=["mounted", "store"])
def path(request, tmp_path):
    if request.param == "mounted":
        (tmp_path / "x").write_bytes(DATA)
        return str(tmp_path / "x")
    fsspec.filesystem("memory").pipe_file("/ranges/x", DATA)
    return "memory://ranges/x"


def test_ranges(path):
    with byte_ranges.opened(path) as file:
        assert file.size() == len(DATA)
        assert file.read(3, 5) == DATA[3:8]
        assert file.read(len(DATA) - 2, 10) == DATA[-2:]


def test_what_changes_with_the_content(tmp_path):
    store = fsspec.filesystem("memory")
    for write, path in (
        ((tmp_path / "x").write_bytes, str(tmp_path / "x")),
        (lambda data: store.pipe_file("/ranges/y", data), "memory://ranges/y"),
    ):
        changes = set()
        for _ in range(2):
            write(DATA)
            with byte_ranges.opened(path) as file:
                changes.add(file.changed())
        assert len(changes) == 2


def test_reading_ahead(path, monkeypatch):
    monkeypatch.setattr(byte_ranges, "_WINDOW", 1000)
    with byte_ranges.opened(path) as file:
        ahead, asked = Ahead(file), []
        inner = file.read
        monkeypatch.setattr(file, "read", lambda *at: asked.append(at) or inner(*at))
        found = b"".join(ahead.read(at, 10) for at in range(0, len(DATA), 10))
        assert found == DATA
        assert len(asked) == 11 and asked[-1] == (10000, 240)
        assert ahead.read(5000, 3000) == DATA[5000:8000]
        assert ahead.read(len(DATA) - 5, 99) == DATA[-5:] and ahead.read(len(DATA), 4) == b""


def test_missing(tmp_path):
    for path in (str(tmp_path / "none"), "memory://ranges/none"):
        with pytest.raises(FileNotFoundError), byte_ranges.opened(path) as file:
            file.size()


def test_an_unknown_store():
    with pytest.raises(InputError, match=r"nosuch://x: .*; mount or copy the data"):
        with byte_ranges.opened("nosuch://x"):
            pass
