import concurrent.futures
import json
import os
import pickle
import shutil

import cv2
import fsspec
import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds
from fsspec.implementations.memory import MemoryFileSystem

from input_pipeline import sources
from input_pipeline.augment.resize import square
from input_pipeline.batches import loader
from input_pipeline.records.array_record import ArrayRecordFile
from input_pipeline.records.tfrecord import TFRecordFile
from input_pipeline.sources import image_folder, tfds_shards
from input_pipeline.sources.tfds import TfdsSource
from launch.errors import InputError
from tests.input_pipeline.sources import prepared_set
from tests.input_pipeline.sources.prepared_set import (
    FORMATS,
    NAMES,
    label,
    record,
    records,
    shard_path,
    write_set,
    write_shard,
)
from tests.input_pipeline.synthetic.tiny_set import IMAGES, LABELS, flip_byte, of_shard
from tests.support.image_folder import encoded, picture


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(params=FORMATS)
def folder(request, tmp_path):
    return write_set(tmp_path / "data", request.param)


def refused(said, *args, **fields):
    with pytest.raises(InputError, match=said) as raised:
        TfdsSource(*args, **fields)
    assert "\n" not in str(raised.value)


def format_of(path):
    return path.name.split(".")[1].partition("-")[0]


def file_names(source):
    return [source.key(i) for i in range(len(source))]


def test_examples(folder):
    source = TfdsSource(folder, "train")
    assert source.class_names == NAMES and len(source) == 15
    assert source.labels.tolist() == [label(i) for i in range(15)]
    assert source.labels.dtype == np.int32 and source.domain.tolist() == [0] * 15
    for i in (14, 0, 5, 4, 9):
        example = source[i]
        np.testing.assert_array_equal(example["image"], prepared_set.image("train", i))
        assert example["label"] == label(i) and example["domain"] == 0
        assert example["label"].dtype == example["domain"].dtype == np.int32
        assert source.key(i) == f"train_{i}.png"
    with pytest.raises(IndexError):
        source[15]


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train[:99%]", range(15)),
        ("train[10%:20%]", range(2, 3)),
        ("train[:7]", range(7)),
        ("train[3:6]", range(3, 6)),
        ("train[-3:]", range(12, 15)),
        ("train[1shard]", range(5, 9)),
    ],
)
def test_slices_are_those_of_tfds(folder, split, expected):
    source = TfdsSource(folder, split)
    assert file_names(source) == [f"train_{i}.png" for i in expected]
    assert source.labels.tolist() == [label(i) for i in expected]
    for i, whole in enumerate(expected):
        np.testing.assert_array_equal(source[i]["image"], prepared_set.image("train", whole))


def test_a_sum_of_slices(folder):
    source = TfdsSource(folder, "train[5:10]+validation+train[:1]")
    train = [f"train_{i}.png" for i in range(5, 10)]
    validation = [f"validation_{i}.png" for i in range(3)]
    assert file_names(source) == [*train, *validation, "train_0.png"]
    np.testing.assert_array_equal(source[6]["image"], prepared_set.image("validation", 1))


def test_slices_hold_what_tfds_itself_reads(tmp_path):
    folder = write_set(tmp_path, "array_record")
    for split in ("train[33%:66%]", "train[2:-2]+validation[1:]"):
        theirs = tfds.builder_from_directory(folder).as_data_source(split)
        ours = TfdsSource(folder, split)
        assert [example["file_name"].decode() for example in theirs] == file_names(ours)
        for i, example in enumerate(theirs):
            np.testing.assert_array_equal(ours[i]["image"], example["image"])
            assert ours[i]["label"] == example["label"]


def test_a_synthetic_set_is_one_as_well(complete):
    source = TfdsSource(complete, "train")
    order = np.concatenate([of_shard(shard) for shard in range(3)])
    assert source.labels.tolist() == [LABELS[index] for index in order]
    np.testing.assert_array_equal(source[7]["image"], IMAGES[order[7]])
    assert source.key(7) == "tiny-train.tfrecord-00001-of-00003:2"
    # Names that are not told apart matter to nobody until they are asked for.
    again = TfdsSource(complete, "train", key="prompt")
    np.testing.assert_array_equal(again.labels, source.labels)


def test_it_can_be_pickled_and_read_by_threads(folder):
    source = TfdsSource(folder, "train")
    copy = pickle.loads(pickle.dumps(source))
    expected = [source[i]["image"].tobytes() for i in range(15)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: copy[i % 15]["image"].tobytes(), range(600)))
    assert found == expected * 40


def test_many_shards_with_few_open_files(tmp_path, monkeypatch):
    from input_pipeline.records import array_record

    monkeypatch.setattr(array_record, "_capacity", lambda: 2)
    folder = write_set(
        tmp_path, "array_record", shards={"train": (3,) * 5}, data=lambda _: records("train")
    )
    source = TfdsSource(folder, "train")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: source[i % 15]["image"].tobytes(), range(300)))
    assert found == [prepared_set.image("train", i % 15).tobytes() for i in range(300)]
    assert len(array_record._READERS._open) == 2


def test_no_shard_is_read_again(folder, monkeypatch):
    expected = TfdsSource(folder, "train").labels.tolist()
    assert len(list((folder / ".imagen_ft").iterdir())) == 3
    monkeypatch.setattr(tfds_shards, "_FILES", None)
    assert TfdsSource(folder, "train").labels.tolist() == expected
    monkeypatch.setattr(image_folder.image_codec, "decode_image", None)
    assert len(TfdsSource(folder, "train[:3]").labels) == 3


def test_an_index_in_the_cache_where_the_data_are_read_only(tmp_path, folder):
    # Not by permissions, which do not bind root.
    (folder / ".imagen_ft").write_text("no folder")
    TfdsSource(folder, "train")
    kept = list((tmp_path / "cache").rglob("*.index"))
    assert len(kept) == 3
    before = [path.stat().st_mtime_ns for path in kept]
    assert TfdsSource(folder, "train")[14]["label"] == label(14)
    assert [path.stat().st_mtime_ns for path in kept] == before


def test_an_index_that_can_be_kept_nowhere(tmp_path, folder, capsys):
    (folder / ".imagen_ft").write_text("no folder")
    (tmp_path / "cache").write_text("no folder")
    source = TfdsSource(folder, "train")
    assert source[14]["label"] == label(14) and source.key(3) == "train_3.png"
    said = capsys.readouterr().err
    assert "its index cannot be saved in" in said and "set XDG_CACHE_HOME" in said
    assert said.count("\n") == 1


def test_a_stale_index_is_made_again(folder):
    assert TfdsSource(folder, "train").labels[0] == 0
    path = shard_path(folder)
    changed = [record("train", i, label=2) for i in range(5)]
    size = path.stat().st_size
    write_shard(path, changed, format_of(path))
    assert path.stat().st_size == size
    source = TfdsSource(folder, "train")
    assert source.labels[:6].tolist() == [2] * 5 + [label(5)]
    assert source[0]["label"] == 2


def test_a_copy_keeps_its_index(folder, tmp_path, monkeypatch):
    expected = TfdsSource(folder, "train").labels.tolist()
    for path in folder.glob("*-train*"):
        os.utime(path, ns=(0, 0))
    monkeypatch.setattr(tfds_shards, "_FILES", None)
    assert TfdsSource(folder, "train").labels.tolist() == expected


def test_a_damaged_index_is_made_again(folder):
    expected = TfdsSource(folder, "train")
    (path,) = (folder / ".imagen_ft").glob("*-00001-of-*")
    whole = path.read_bytes()
    for position in range(0, len(whole), 13):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        source = TfdsSource(folder, "train")
        assert source.labels.tolist() == expected.labels.tolist(), position
        assert source.key(6) == "train_6.png"
    for length in (0, 10, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert TfdsSource(folder, "train").labels.tolist() == expected.labels.tolist()
    assert path.read_bytes() == whole


def test_an_index_of_other_data_is_not_believed(folder):
    """Even if it seems to fit: the label of a record is compared whenever it is read."""
    TfdsSource(folder, "train")
    source = TfdsSource(folder, "train")
    source.labels[3] = (source.labels[3] + 1) % 3
    with pytest.raises(
        InputError, match=r"record 3.*: its label is 0, but 1 in the index; remove /"
    ):
        source[3]


def test_digests(tmp_path):
    paths = [write_set(tmp_path / name, name) for name in FORMATS]
    spec = dict(name="tfds", split="train")
    digests = [sources.load(dict(spec, path=str(path))).digest() for path in paths]
    assert digests[0] == digests[1] and len(digests[0]) == 64
    part = sources.load(dict(spec, path=str(paths[0]), split="train[:9]")).digest()
    assert part != digests[0]
    changed = [*records("train")[:-1], record("train", 14, file_name="other.png")]
    other = write_set(
        tmp_path / "other", data=lambda split: changed if split == "train" else records(split)
    )
    assert sources.load(dict(spec, path=str(other))).digest() != digests[0]


def test_found_by_name(tmp_path, monkeypatch):
    for version in ("1.2.0", "1.10.0", "1.9.9"):
        write_set(tmp_path, version=version, names=("a", "b", version))
    spec = dict(name="tfds", data_set="insects", data_dir=str(tmp_path), split="validation")
    assert sources.load(spec).class_names[2] == "1.10.0"
    older = dict(spec, data_set="insects:1.2.0")
    assert sources.load(older).class_names[2] == "1.2.0"
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert len(sources.load(dict(spec, data_dir=None))) == 3
    by_path = dict(name="tfds", path=str(tmp_path / "insects"), split="validation")
    assert sources.load(by_path).class_names[2] == "1.10.0"
    with pytest.raises(
        InputError, match=r"version 2\.0\.0, only 1\.10\.0, 1\.2\.0, 1\.9\.9; use one of these"
    ):
        sources.load(dict(spec, data_set="insects:2.0.0"))


def test_configs(tmp_path):
    write_set(tmp_path / "insects", name="large", names=("l", "a", "r"))
    spec = dict(name="tfds", data_dir=str(tmp_path), split="validation")
    assert sources.load(dict(spec, data_set="insects")).class_names == ("l", "a", "r")
    write_set(tmp_path / "insects", name="small", names=("s", "m", "l"))
    assert sources.load(dict(spec, data_set="insects/small")).class_names == ("s", "m", "l")
    assert len(sources.load(dict(spec, data_set="insects/small:1.0.0"))) == 3
    with pytest.raises(InputError, match="insects has configs large, small; choose one of them"):
        sources.load(dict(spec, data_set="insects"))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (dict(data_set="imagenet2012"), "is not prepared; .* run 'tfds build imagenet2012 --file_"),
        (dict(data_set="a/b"), "run 'tfds build a/b --file_format=array_record --data_dir=/"),
        (dict(data_set="a b"), r"data_set must be name, name/config or name/config:1\.0\.0"),
        (dict(path="/nowhere"), "/nowhere: no such folder; prepare the data set there"),
        (dict(), "needs path, or data_set"),
        (dict(path="x", data_set="y"), "needs path, or data_set"),
        (dict(path="x", on_damage="ignore"), "on_damage must be one of error, skip, got 'ignore'"),
        (dict(path="x", copies=1), "no field 'copies'; use name, split, path, data_set, data_dir"),
    ],
)
def test_wrong_specs(tmp_path, fields, said):
    data_dir = {} if "path" in fields else {"data_dir": str(tmp_path)}
    with pytest.raises(InputError, match=said) as raised:
        sources.load(dict(name="tfds", split="train", **fields, **data_dir))
    assert "\n" not in str(raised.value)


def test_a_folder_without_a_data_set(tmp_path):
    refused(" has no data set that TFDS prepared", tmp_path, "train")


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ("test", "split 'test': Unknown split 'test'.* It has train, validation; slices are"),
        ("train[3]", "Absolute or percent only support slice syntax"),
        ("train[:9", "Unrecognized split format"),
        ("train[:99]", r"Requested slice \[:99\] incompatible with 15 examples"),
        ("train[5:5]", "has no record"),
    ],
)
def test_wrong_splits(folder, split, said):
    refused(said, folder, split)


def test_wrong_fields(folder):
    has = r"it has file_name \(Text\), image \(Image\), label \(ClassLabel\)"
    refused(f"no field 'fine_label' of kind ClassLabel; {has}", folder, "train", label="fine_label")
    refused("no field 'label' of kind Image", folder, "train", image="label")
    refused("no field 'image' of kind Text", folder, "train", key="image")


def test_damaged_metadata(folder):
    for name, said in (
        ("features.json", "cannot be read"),
        ("dataset_info.json", "cannot be read"),
    ):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-9])
        refused(f"its metadata {said}.*; prepare it again", folder, "train")
        (folder / name).write_bytes(whole)
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "parquet"}))
    refused(
        r"data/insects/1\.0\.0: its format must be .*got parquet; prepare it again", folder, "train"
    )


def test_other_classes_than_the_metadata_say(folder):
    (folder / "label.labels.txt").write_text("ant\nbee\n")
    refused("must have the 3 class names of features.json, got 2", folder, "train")
    (folder / "label.labels.txt").unlink()
    assert TfdsSource(folder, "train").class_names == ("0", "1", "2")


def test_a_split_without_labels(tmp_path):
    unlabelled = [record("train", i, label=-1) for i in range(15)]
    folder = write_set(tmp_path, data=lambda split: unlabelled)
    refused(
        r"record 0: its label must be .*got -1; choose a split with labels, or prepare it again",
        folder,
        "train",
    )


def test_shards_of_another_set(folder, tmp_path):
    file_format = format_of(shard_path(folder))
    other = write_set(tmp_path / "other", file_format, shards={"train": (5, 5, 5)})
    shutil.copy(shard_path(other, 1), shard_path(folder, 1))
    refused(
        r"-00001-of-00003 must have the 4 records of dataset_info\.json, got 5: not a shard",
        folder,
        "all",
    )
    more = [record("train", i, label=7) for i in range(4)]
    write_shard(shard_path(folder, 1), more, file_format)
    refused(
        "-00001-of-00003: record 0: its label must be below the 3 classes, got 7", folder, "train"
    )
    texts = [b"no example"] * 4
    write_shard(shard_path(folder, 1), texts, file_format)
    spec = dict(name="tfds", path=str(folder), split="train")
    with pytest.raises(InputError, match=r"-00001-of-00003: record 0: not a tf\.train\.Example"):
        sources.load(spec)
    shard_path(folder, 1).unlink()
    for policy in ("error", "skip"):
        with pytest.raises(InputError, match="-00001-of-00003: no such shard; prepare or download"):
            sources.load({**spec, "on_damage": policy})


def test_names_that_occur_twice(tmp_path):
    same = [record("train", i, file_name=f"{i % 4}.png") for i in range(15)]
    source = TfdsSource(write_set(tmp_path, data=lambda split: same), "train")
    with pytest.raises(
        InputError, match=r"file_name must differ between records, got '0\.png' twice; choose"
    ):
        source.key(3)


def of_images(tmp_path, images):
    made = [record("train", i, image=image) for i, image in enumerate(images)]
    return TfdsSource(
        write_set(tmp_path, shards={"train": (len(made),)}, data=lambda _: made), "all"
    )


def test_kinds_of_images(tmp_path):
    rgb = picture(40, 24)
    deep = cv2.imencode(".png", np.dstack([rgb.astype(np.uint16) * 256 + 77] * 1)[..., ::-1])[1]
    cmyk = encoded(PIL.Image.fromarray(rgb).convert("CMYK"), "JPEG")
    grey = encoded(rgb[..., 0])
    source = of_images(tmp_path, [cmyk, grey, deep.tobytes()])
    np.testing.assert_array_equal(source[0]["image"], image_folder.decode(cmyk))
    np.testing.assert_array_equal(source[1]["image"], np.dstack([rgb[..., 0]] * 3))
    np.testing.assert_array_equal(source[2]["image"], rgb)


def test_an_image_cut_short(tmp_path):
    jpeg = encoded(picture(24, 24), "JPEG")
    source = of_images(tmp_path, [jpeg, jpeg[:-30], b"text"])
    assert source.labels.tolist() == [0, 1, 1] and source[0]["image"].shape == (24, 24, 3)
    with pytest.raises(InputError, match=r"record 1 at byte \d+: .* bytes of a truncated image"):
        source[1]
    with pytest.raises(InputError, match=r"record 2 at byte \d+: OpenCV cannot decode the 4 bytes"):
        source[2]


def test_a_damaged_tfrecord(tmp_path):
    folder = write_set(tmp_path)
    path = shard_path(folder, 1)
    source = TfdsSource(folder, "train")
    start = int(TFRecordFile(path).starts[2])
    flip_byte(path, start + 52)
    said = rf"-00001-of-00003: record 2 at byte {start}: damaged data \(wrong checksum\)"
    with pytest.raises(InputError, match=said):
        source[7]
    assert source[8]["label"] == label(8)
    with pytest.raises(InputError, match=said):
        sources.load(dict(name="tfds", path=str(folder), split="train"))


def test_a_damaged_array_record(tmp_path):
    folder = write_set(tmp_path, "array_record")
    path = shard_path(folder, 1)
    source = TfdsSource(folder, "train")
    place = path.read_bytes().index(b"train_7.png")
    flip_byte(path, place)
    with pytest.raises(InputError, match=r"-00001-of-00003: record 2: damaged \(Corrupted Riegeli"):
        source[7]
    assert source[8]["label"] == label(8)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"-00001-of-00003 is not a complete ArrayRecord \("):
        sources.load(dict(name="tfds", path=str(folder), split="train"))


@pytest.mark.parametrize("change", ["data", "length", "cut"])
def test_records_without_a_label_are_left_out(tmp_path, change, capsys):
    folder = write_set(tmp_path)
    path = shard_path(folder, 1)
    offset = int(TFRecordFile(path).starts[2]) + 12
    whole = path.read_bytes()
    if change == "cut":
        path.write_bytes(whole[: offset + 5])
    else:
        flip_byte(path, offset + 40 if change == "data" else offset - 12)
    spec = dict(name="tfds", path=str(folder), split="train")
    said = rf"-00001-of-00003: record 2 at byte {offset - 12}: (damaged|truncated)"
    for _ in range(2):  # What was found is not kept.
        with pytest.raises(InputError, match=said):
            sources.load(spec)
    source = sources.load({**spec, "on_damage": "skip"})
    lost = [7] if change == "data" else [7, 8]
    left = [i for i in range(15) if i not in lost]
    assert source.labels.tolist() == [label(i) for i in left]
    assert file_names(source) == [f"train_{i}.png" for i in left]
    assert source[7]["label"] == source.labels[7]
    err = capsys.readouterr().err
    assert f"{len(lost)} of 15 records have no readable label and are left out" in err
    path.write_bytes(whole)
    assert len(sources.load(spec)) == 15


def test_batches(folder):
    def transform(example):
        return {**example, "image": square(example["image"], 4)}

    source = sources.load(dict(name="tfds", path=str(folder), split="train"))
    batch = next(loader.iterate(loader.batches(source, 15, seed=0, transform=transform), 0, 1))
    assert batch["image"].shape == (15, 4, 4, 3)
    assert np.bincount(batch["label"]).tolist() == np.bincount(source.labels).tolist()


class Store(MemoryFileSystem):
    """Stands for gs://, which etils and fsspec come by in the same way."""

    protocol = "az"
    store, pseudo_dirs = {}, [""]
    read_only = False

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("az://"))

    def _open(self, path, mode="rb", **options):
        if self.read_only and mode != "rb":
            raise OSError("Forbidden")
        return super()._open(path, mode, **options)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_set_in_a_store(tmp_path, monkeypatch, read_only):
    fsspec.register_implementation("az", Store, clobber=True)
    monkeypatch.setattr(Store, "store", {})
    folder, store = write_set(tmp_path), fsspec.filesystem("az")
    for path in folder.iterdir():
        store.pipe_file(f"az://bucket/insects/1.0.0/{path.name}", path.read_bytes())
    monkeypatch.setattr(Store, "read_only", read_only)
    spec = dict(name="tfds", data_set="insects", data_dir="az://bucket", split="train[3:]")
    first = sources.load(spec)
    in_cache, beside = list((tmp_path / "cache").rglob("*.index")), store.find("az://bucket")
    assert len(in_cache) == (3 if read_only else 0)
    assert sum(name.endswith(".index") for name in beside) == (0 if read_only else 3)
    monkeypatch.setattr(tfds_shards, "_FILES", None)
    for source in (first, sources.load(spec)):
        assert file_names(source) == [f"train_{i}.png" for i in range(3, 15)]
        np.testing.assert_array_equal(source[3]["image"], prepared_set.image("train", 6))


def test_array_record_in_a_store():
    with pytest.raises(InputError, match="az://x: array_record needs a mounted folder"):
        ArrayRecordFile("az://x")
