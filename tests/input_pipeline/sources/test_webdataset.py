"""Tars as WebDataset has them, written by Python's tarfile."""

import io
import json
import pickle
import tarfile

import numpy as np
import pytest

from input_pipeline import sources
from input_pipeline.sources import webdataset
from input_pipeline.sources.webdataset import WebDataset
from launch.errors import InputError
from tests.support.image_folder import encoded, picture


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def image(i):
    return picture(5 + i % 4, 8, seed=i)


def files_of(i):
    return {
        f"part/{i:04d}.png": encoded(image(i)),
        f"part/{i:04d}.txt": f"caption {i} é".encode(),
        f"part/{i:04d}.json": json.dumps({"alt": f"alt {i}", "n": 1}).encode(),
        f"part/{i:04d}.cls": str(i % 3).encode(),
    }


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode, format=tarfile.PAX_FORMAT) as archive:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return path


@pytest.fixture
def folder(tmp_path):
    """Two tars, of 3 and 4 samples, the files of a sample not always side by side."""
    folder = tmp_path / "data"
    folder.mkdir()
    write_tar(folder / "00000.tar", {k: v for i in range(3) for k, v in files_of(i).items()})
    members = {k: v for i in range(3, 7) for k, v in files_of(i).items()}
    write_tar(folder / "00001.tar", dict(sorted(members.items(), key=lambda item: item[0][-3:])))
    return folder


def test_samples(folder):
    source = WebDataset(str(folder), caption="txt", class_names=("a", "b", "c"))
    assert len(source) == 7 and sorted(source.labels[3:].tolist()) == [0, 0, 1, 2]
    order = [int(source.key(i)[-4:]) for i in range(7)]
    assert sorted(order) == list(range(7)) and source.key(0) == "00000.tar:part/0000"
    for i, number in enumerate(order):
        example = source[i]
        np.testing.assert_array_equal(example["image"], image(number))
        assert (example["caption"], example["label"]) == (f"caption {number} é", number % 3)
    again = pickle.loads(pickle.dumps(source))
    assert again[6]["caption"] == source[6]["caption"] and again.digest() == source.digest()


def test_what_names_tars(folder):
    whole = WebDataset(str(folder))
    for path in ("*.tar", "{00000..00001}.tar"):
        assert WebDataset(f"{folder}/{path}").digest() == whole.digest()
    one = WebDataset(f"{folder}/00001.tar")
    assert len(one) == 4 and one.digest() != whole.digest()
    assert one.class_names == ("all",) and one.labels.tolist() == [0] * 4
    assert "caption" not in one[0]
    # Tars of one name in two folders have keys that differ.
    for name in ("one", "two"):
        (folder / name).mkdir()
        write_tar(folder / name / "0.tar", files_of(0))
    twins = WebDataset(f"{folder}/*/0.tar")
    assert [twins.key(i) for i in range(2)] == ["one/0.tar:part/0000", "two/0.tar:part/0000"]
    spec = dict(name="webdataset", path=str(folder), caption="json:alt")
    assert sources.load(spec)[0]["caption"] == "alt 0"


def test_the_index_is_kept(folder, monkeypatch):
    first = WebDataset(str(folder), caption="txt")
    monkeypatch.setattr(webdataset, "_samples", None)
    assert WebDataset(str(folder), caption="txt").digest() == first.digest()
    monkeypatch.undo()
    # Another file has another index.
    write_tar(folder / "00000.tar", files_of(8))
    assert len(WebDataset(str(folder), caption="txt")) == 5


def refused(said, path, **fields):
    with pytest.raises(InputError, match=said) as raised:
        source = WebDataset(str(path), **fields)
        source[0]
    assert "\n" not in str(raised.value)


def test_wrong_input(folder, tmp_path):
    refused("no such tar, and no file matches", tmp_path / "*.tar")
    refused(r"00002.tar: no such tar; download it", f"{folder}/{{00000..00002}}.tar")
    refused("tars need a mounted folder", "gs://bucket/x.tar")
    refused("caption must be json:title", folder, caption="json:title")
    refused("caption must be a string, got 1", folder, caption="json:n")
    vtt = r"must have a file .vtt \(caption\), got image, txt, json, cls; set caption"
    refused(vtt, folder, caption="vtt")
    refused("label must be below the 2 classes, got 2", folder, class_names=("a", "b"))
    broken = tmp_path / "broken.tar"
    data = write_tar(broken, files_of(0)).read_bytes()
    # Between two files, where tarfile sees no damage, and within one.
    for size in (700, 1024, 1500):
        broken.write_bytes(data[:size])
        refused("must be a complete, uncompressed tar", broken)
    broken.write_bytes(data[:1024] + b"x" * 512 + data[1536:])
    refused("no file and no end at byte 1,024", broken)
    write_tar(broken, {})
    refused("has no samples", broken)
    refused("the range ends before it begins", f"{folder}/{{2..1}}.tar")
    write_tar(broken, files_of(0), "w:gz")
    refused("must be a complete, uncompressed tar", broken)
    write_tar(broken, {"0.png": encoded(image(0)), "0.txt": b"\xff"})
    refused("its caption must be txt in UTF-8", broken, caption="txt")
    write_tar(broken, {"0.png": encoded(image(0)), "0.jpg": encoded(image(0))})
    refused("sample 0 must have only one image, got 0.jpg as well", broken)
    write_tar(broken, {"0.png": encoded(image(0)), "0.cls": b"x"})
    refused("0.cls must be a label, got b'x'", broken, class_names=("a",))
    for label in (2**32, 2**64):
        write_tar(broken, {"0.png": encoded(image(0)), "0.cls": str(label).encode()})
        refused("label", broken, class_names=("a",))
