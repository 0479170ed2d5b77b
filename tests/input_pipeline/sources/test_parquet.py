import concurrent.futures
import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from etils import epath

from input_pipeline import sources
from input_pipeline.sources import parquet
from input_pipeline.sources.parquet import ParquetSource
from launch.errors import InputError
from tests.support.image_folder import encoded, picture

NAMES = ("cat", "dog", "eel")
LENGTHS = (5, 7)


def image(i):
    return picture(5 + i % 4, 8, seed=i)


def table(start, stop, *, names=NAMES, plain=False, **columns):
    data = [encoded(image(i)) for i in range(start, stop)]
    labels = [i % 3 for i in range(start, stop)]
    paths = [f"{i}.png" for i in range(start, stop)]
    images = [{"bytes": one, "path": path} for one, path in zip(data, paths, strict=True)]
    columns = {"image": data if plain else images, "label": labels, **columns}
    made = pa.table({name: values for name, values in columns.items() if values is not None})
    if names is None:
        return made
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    told = json.dumps({"info": {"features": features}})
    return made.replace_schema_metadata({"huggingface": told})


def write_files(folder, split="train", lengths=LENGTHS, **options):
    folder.mkdir(exist_ok=True)
    ends = np.cumsum(lengths).tolist()
    for n, (end, length) in enumerate(zip(ends, lengths, strict=True)):
        path = folder / f"{split}-{n:05d}-of-{len(lengths):05d}.parquet"
        pq.write_table(table(end - length, end, **options), path, row_group_size=3)
    return folder


def refused(said, *args, **fields):
    with pytest.raises(InputError, match=said) as raised:
        ParquetSource(*args, **fields)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("plain", [False, True])
def test_examples(tmp_path, plain):
    source = ParquetSource(write_files(tmp_path / "a", plain=plain))
    assert source.class_names == NAMES and len(source) == 12
    assert source.labels.tolist() == [i % 3 for i in range(12)]
    assert source.labels.dtype == np.int32 and source.domain.tolist() == [0] * 12
    for i in (11, 0, 3, 2, 8, 4, 5, 7):
        example = source[i]
        np.testing.assert_array_equal(example["image"], image(i))
        assert example["label"] == i % 3 and example["label"].dtype == np.int32
    assert source.key(4) == "train-00000-of-00002.parquet:4"
    assert source.key(11) == "train-00001-of-00002.parquet:6"
    assert len({source.key(i) for i in range(12)}) == 12
    with pytest.raises(IndexError):
        source[12]


def test_it_can_be_pickled_and_read_by_threads(tmp_path):
    copy = pickle.loads(pickle.dumps(ParquetSource(write_files(tmp_path / "a"), row_groups=2)))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: copy[i * 5 % 12]["image"].tobytes(), range(240)))
    assert found == [image(i * 5 % 12).tobytes() for i in range(240)]
    assert len(copy._cache) == 2


def test_rows_of_one_group_are_read_once(tmp_path, monkeypatch):
    source = ParquetSource(write_files(tmp_path / "a"))
    read = []
    inner = source._read
    monkeypatch.setattr(source, "_read", lambda group: read.append(group) or inner(group))
    for i in range(12):
        source[i]
    assert read == [0, 1, 2, 3, 4]


def test_splits_and_patterns(tmp_path):
    write_files(tmp_path / "a")
    write_files(tmp_path / "a", "test", (3,))
    refused("a has the splits test, train; choose one as split", tmp_path / "a")
    spec = dict(name="parquet", path=str(tmp_path / "a"))
    assert len(sources.load(dict(spec, split="test"))) == 3
    assert len(sources.load(dict(spec, split="train", per_class=2))) == 6
    refused("no files val-.*; it has test, train", tmp_path / "a", "val")
    second = sources.load(dict(name="parquet", path=str(tmp_path / "a" / "train-00001*")))
    assert len(second) == 7 and second.key(0) == "train-00001-of-00002.parquet:0"
    refused("no such folder, and no file matches", tmp_path / "a" / "valid*")
    refused("split='train' needs a folder", tmp_path / "a" / "t*", "train")
    (tmp_path / "a" / "train-00000-of-00002.parquet").unlink()
    refused("1 files of 00002; download the missing ones", tmp_path / "a", "train")
    (tmp_path / "empty").mkdir()
    refused(r"it has no \*\.parquet", tmp_path / "empty")
    for name in ("train", "test"):
        (tmp_path / "empty" / f"{name}.parquet").write_bytes(
            epath.Path(second._paths[0]).read_bytes()
        )
    refused("has the splits test, train; choose one", tmp_path / "empty")
    refused("no files val-.*; it has test, train", tmp_path / "empty", "val")
    assert len(ParquetSource(tmp_path / "empty", "test")) == 7
    said = "class_names must be a list of names, got 'imagenet'"
    refused(said, tmp_path / "empty", "test", class_names="imagenet")
    refused("Parquet needs a mounted folder", "gs://bucket/x")


def test_class_names(tmp_path):
    folder = write_files(tmp_path / "a", names=None)
    refused("has no class names; set class_names in the config", folder)
    assert ParquetSource(folder, class_names=("x", "y", "z")).class_names == ("x", "y", "z")
    refused(
        r"row 2: its label must be .*got 2; choose a split with labels, or give all class_names",
        folder,
        class_names=("x", "y"),
    )
    named = write_files(tmp_path / "b")
    refused("class_names must equal those of .*, got 2 others", named, class_names=("x", "y"))
    assert ParquetSource(named, class_names=NAMES).class_names == NAMES


def test_a_file_of_another_set(tmp_path):
    folder = write_files(tmp_path / "a")
    path = folder / "train-00001-of-00002.parquet"
    pq.write_table(table(0, 3, names=("cat", "dog", "fox")), path)
    refused(r"train-00001-of-00002\.parquet has other columns or classes than", folder)
    pq.write_table(table(0, 3, extra=["a", "b", "c"]), path)
    refused("other columns or classes", folder)


def test_wrong_columns(tmp_path):
    folder = write_files(tmp_path / "a", lengths=(3,))
    has = r"use one of image \(struct<bytes: binary, path: string>\), label \(int64\)"
    refused(f"no column 'img' of bytes or of structs with bytes; {has}", folder, image="img")
    refused("no column 'image' of integers", folder, label="image")
    refused("no column 'label' of bytes", folder, image="label")
    unlabelled = write_files(tmp_path / "b", lengths=(3,), label=pa.array([0, None, 1]))
    refused("has 1 rows without a label; choose another split", unlabelled)
    wrong = write_files(tmp_path / "c", lengths=(3,), label=[0, -1, 1])
    refused("00000-of-00001.parquet: row 1: its label must be below the 3 classes, got -1", wrong)


def test_damaged_files(tmp_path):
    folder = write_files(tmp_path / "a")
    path = folder / "train-00001-of-00002.parquet"
    whole = path.read_bytes()
    for data in (whole[:-9], b"text", b""):
        path.write_bytes(data)
        refused("00001-of-00002.parquet is not a complete Parquet file", folder)
    path.write_bytes(whole)
    source = ParquetSource(folder)
    path.write_bytes(whole[:4] + bytes(200) + whole[204:])
    assert source[4]["image"].shape == image(4).shape
    with pytest.raises(InputError, match=r"00001-of-00002\.parquet: row 0: ") as raised:
        source[5]
    assert "\n" not in str(raised.value)
    path.unlink()
    with pytest.raises(InputError, match="row 6: its row group cannot be read"):
        source[11]


def test_damaged_images(tmp_path):
    jpeg = encoded(picture(24, 24), "JPEG")
    images = [{"bytes": data, "path": "x"} for data in (jpeg, jpeg[:-30], None)]
    source = ParquetSource(write_files(tmp_path / "a", lengths=(3,), image=images))
    assert source[0]["image"].shape == (24, 24, 3)
    with pytest.raises(
        InputError, match=r"of-00001\.parquet: row 1: .* bytes of a truncated image"
    ):
        source[1]
    with pytest.raises(InputError, match="row 2: has no image bytes"):
        source[2]


def test_digest(tmp_path):
    def digest(folder):
        return sources.load(dict(name="parquet", path=str(folder))).digest()

    folder = write_files(tmp_path / "a")
    before = digest(folder)
    assert before == digest(write_files(tmp_path / "b")) and len(before) == 64
    assert digest(write_files(tmp_path / "c", lengths=(6, 6))) != before
    assert digest(write_files(tmp_path / "d", names=("cat", "dog", "fox"))) != before


def test_footers_are_read_once(tmp_path, monkeypatch):
    source = ParquetSource(write_files(tmp_path / "a"))
    monkeypatch.setattr(parquet, "_File", None)
    assert source[11]["label"] == 2


NO_NAMES, NO_JSON = "has no class names; set class_names", "its metadata 'huggingface': not JSON"


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ("[1]", NO_NAMES),
        ('{"info": 3}', NO_NAMES),
        ('{"info": {"features": {"label": {"names": "abc"}}}}', NO_NAMES),
        ("{", NO_JSON),
        ("[" * 10**5, NO_JSON),
    ],
    ids=["list", "number", "text", "half", "nested"],
)
def test_metadata_of_another_kind(tmp_path, metadata, said):
    path = tmp_path / "train-00000-of-00001.parquet"
    pq.write_table(table(0, 3, names=None).replace_schema_metadata({"huggingface": metadata}), path)
    refused(rf"{path}.*{said}", tmp_path)


@pytest.mark.parametrize("column", [0, 2], ids=["images", "labels"])
def test_flips_in_what_stands_before_a_page(tmp_path, column):
    """Its numbers of rows and bytes: no row is silently left out, and nothing else is raised."""
    write_files(tmp_path / "a", lengths=(3,))
    [path] = (tmp_path / "a").iterdir()
    data, faults = path.read_bytes(), set()
    start = pq.read_metadata(path).row_group(0).column(column).data_page_offset
    for bit in range(8 * 24):
        flipped = bytearray(data)
        flipped[start + bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            source = ParquetSource(tmp_path / "a")
            assert len([source[i] for i in range(len(source))]) == 3
        except InputError as error:
            assert "\n" not in str(error)
            faults.add(str(error).rpartition(": ")[2])
    assert len(faults) > 1
