import concurrent.futures
import io
import os
import pickle
import zipfile
import zlib

import cv2
import numpy as np
import PIL.Image
import pytest

from input_pipeline import sources
from input_pipeline.augment.resize import square
from input_pipeline.batches import loader
from input_pipeline.sources.image_folder import ImageFolder, decode
from launch.errors import InputError
from tests.support.image_folder import encoded, picture, write_folder

SIZES = {"dog/b.PNG": (6, 9), "dog/a.jpg": (16, 8), "cat/1.jpeg": (8, 8), "ant/z.png": (5, 5)}
ORDER = ("ant/z.png", "cat/1.jpeg", "dog/a.jpg", "dog/b.PNG")


def contents():
    return {
        name: encoded(picture(*size, seed), "PNG" if name.lower().endswith("png") else "JPEG")
        for seed, (name, size) in enumerate(SIZES.items())
    }


def write_zip(path, named, methods=(zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)):
    with zipfile.ZipFile(path, "w") as archive:
        for number, (name, data) in enumerate(named.items()):
            archive.writestr(name, data, methods[number % len(methods)])
    return path


def below(folder, named):
    return {f"{folder}/{name}": data for name, data in named.items()}


@pytest.fixture(params=["folder", "folder and root", "zip", "zip and root", "zip of classes"])
def opened(request, tmp_path):
    notes = {"notes.txt": b"beside the classes", ".cache/x": b"", "cat/.DS_Store": b"hidden"}
    named = {**contents(), **notes}
    if request.param == "folder":
        return ImageFolder(write_folder(tmp_path / "images", named))
    if request.param == "folder and root":
        write_folder(tmp_path / "set", below("a/train", named))
        return ImageFolder(tmp_path / "set", "a/train")
    if request.param == "zip":
        macos = {"__MACOSX/a/train/cat/._1.jpg": b"", "__MACOSX/a/._train": b""}
        return ImageFolder(write_zip(tmp_path / "a.zip", {**below("a/train", named), **macos}))
    if request.param == "zip and root":
        both = {**below("a/train", named), "a/test/cat/1.jpg": b"", "a/train2/cat/1.jpg": b""}
        return ImageFolder(write_zip(tmp_path / "a.zip", both), "/a/train/")
    return ImageFolder(write_zip(tmp_path / "a.zip", {**named, "__MACOSX/._cat": b""}))


def test_examples(opened):
    assert opened.class_names == ("ant", "cat", "dog")
    assert opened.labels.tolist() == [0, 1, 2, 2] and opened.labels.dtype == np.int32
    assert opened.domain.tolist() == [0] * 4 and len(opened) == 4
    for i, name in enumerate(ORDER):
        example = opened[i]
        expected = picture(*SIZES[name], seed=list(SIZES).index(name))
        assert opened.key(i) == name
        assert example["image"].shape == expected.shape and example["image"].dtype == np.uint8
        lossless = name.lower().endswith("png")
        difference = np.abs(example["image"].astype(int) - expected)
        assert difference.max() == 0 if lossless else difference.mean() < 12
        assert example["label"] == opened.labels[i] and example["label"].dtype == np.int32


def test_it_can_be_pickled_and_read_by_threads(opened):
    copy = pickle.loads(pickle.dumps(opened))
    expected = [opened[i]["image"].tobytes() for i in range(4)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: copy[i % 4]["image"].tobytes(), range(400)))
    assert found == expected * 100


def test_labels_come_without_reading_an_image(tmp_path):
    named = dict.fromkeys(contents(), b"no image")
    for path in (
        write_zip(tmp_path / "a.zip", named),
        write_folder(tmp_path / "images", named),
    ):
        assert ImageFolder(path).labels.tolist() == [0, 1, 2, 2]


def test_a_zip_is_read_at_one_place(tmp_path, monkeypatch):
    """Not found again by its list, which would be read for every image."""
    source = ImageFolder(write_zip(tmp_path / "a.zip", contents()))
    monkeypatch.setattr(zipfile, "ZipFile", None)
    assert source[3]["image"].shape == (6, 9, 3)


def test_a_zip_behind_other_bytes(tmp_path):
    path = write_zip(tmp_path / "a.zip", contents())
    path.write_bytes(b"#! self-extracting\n" * 99 + path.read_bytes())
    assert ImageFolder(path)[0]["image"].shape == (5, 5, 3)


def test_kinds_of_images():
    """Against PIL, which the usual PyTorch training decodes with."""
    rgb = picture(40, 24)
    grey, whole = rgb[..., 0], PIL.Image.fromarray(rgb)
    oriented = PIL.Image.Exif()
    oriented[0x0112] = 6  # to be turned by 90 degrees
    files = {
        "grey png": (encoded(grey), 0),
        "grey jpeg": (encoded(grey, "JPEG"), 1),
        "palette": (encoded(whole.convert("P")), 0),
        "opacity": (encoded(np.dstack([rgb, grey])), 0),
        "cmyk": (encoded(whole.convert("CMYK"), "JPEG"), 4),
        "oriented": (encoded(rgb, "JPEG", exif=oriented), 4),
        "progressive": (encoded(rgb, "JPEG", progressive=True), 4),
        "behind the end": (encoded(rgb, "JPEG") + b"trailing", 4),
    }
    for kind, (data, tolerance) in files.items():
        image = decode(data)
        expected = np.array(PIL.Image.open(io.BytesIO(data)).convert("RGB"))
        assert image.shape == expected.shape == (40, 24, 3), kind
        assert np.abs(image.astype(int) - expected).max() <= tolerance, kind


def test_16_bits():
    levels = np.array([[0, 255, 256, 0x80FF, 65535]], np.uint16)
    data = cv2.imencode(".png", np.dstack([levels] * 3))[1].tobytes()
    assert decode(data)[0, :, 1].tolist() == [0, 0, 1, 0x80, 255]


def with_preview(jpeg):
    """In its head, a JPEG that has an end marker of its own."""
    inner = encoded(picture(8, 8), "JPEG")
    return jpeg[:2] + b"\xff\xe1" + (len(inner) + 2).to_bytes(2, "big") + inner + jpeg[2:]


@pytest.mark.parametrize("kind", ["png", "jpeg", "jpeg with a preview"])
def test_every_beginning_of_an_image_is_refused(kind):
    data = encoded(picture(24, 24), kind.split()[0])
    data = with_preview(data) if "preview" in kind else data
    assert decode(data).shape == (24, 24, 3)
    for length in range(4, len(data), 7):
        with pytest.raises(InputError, match=f"{length} bytes of a truncated image"):
            decode(data[:length])


def test_what_is_no_image():
    with pytest.raises(InputError, match="OpenCV cannot decode the 5 bytes"):
        decode(b"hello")
    huge = bytearray(encoded(picture(2, 2)))
    huge[16:24] = (65535).to_bytes(4, "big") * 2  # width and height
    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
    with pytest.raises(InputError, match=r"OpenCV cannot decode it \(") as raised:
        decode(bytes(huge))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("data", [b"", b"text", encoded(picture(9, 9), "JPEG")[:-9]])
def test_a_damaged_image_is_named(tmp_path, kind, data):
    named = {**contents(), "cat/1.jpeg": data}
    write = write_folder if kind == "folder" else write_zip
    source = ImageFolder(write(tmp_path / "x", named))
    assert source[0]["label"] == 0
    with pytest.raises(
        InputError,
        match=r"/x/cat/1\.jpeg: .* image; ",
    ) as raised:
        source[1]
    assert "\n" not in str(raised.value)


def test_a_flipped_bit_in_a_zip_is_named(tmp_path):
    named = contents()
    path = write_zip(tmp_path / "a.zip", named)
    source = ImageFolder(path)
    whole = path.read_bytes()
    for i, name in enumerate(ORDER):
        start = whole.index(name.encode()) + len(name)
        for place in (start, start + 20, start + 40):
            damaged = bytearray(whole)
            damaged[place] ^= 4
            path.write_bytes(damaged)
            with pytest.raises(InputError, match=rf"a\.zip/{name} is damaged \(wrong checksum\)"):
                source[i]
    path.write_bytes(whole[:100])  # Cut short after it was listed.
    with pytest.raises(InputError, match="wrong checksum"):
        source[3]


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"cat/1.png": b"", "dog/.hidden": b""}, r"x/dog has no image; add some or remove it"),
        (
            {"cat/1.png": b"", "cat/a.heic": b""},
            r"x/cat/a\.heic must be a file \.jpg, \.jpeg, \.png, \.webp, \.bmp, \.gif",
        ),
        (
            {"cat/1.png": b"", "cat/deep/2.png": b""},
            r"x/cat/deep must be a file|in its top and in 'cat'",
        ),
    ],
)
def test_wrong_contents(tmp_path, kind, named, said):
    write = write_folder if kind == "folder" else write_zip
    with pytest.raises(InputError, match=said):
        ImageFolder(write(tmp_path / "x", named))


def test_wrong_folders_and_zips(tmp_path):
    def refused(said, *where):
        with pytest.raises(InputError, match=said) as raised:
            ImageFolder(*where)
        assert "\n" not in str(raised.value)

    refused("none does not exist", tmp_path / "none")
    refused("gs://bucket/x: images need a mounted folder", "gs://bucket/x")
    write_folder(tmp_path, {"1.txt": b""})
    refused("has no folders of images", tmp_path)
    refused("a/b does not exist", tmp_path, "a/b")
    two = write_zip(tmp_path / "two.zip", {"x/train/a/1.png": b"", "x/test/a/1.png": b""})
    refused("classes in 'x/test' and in 'x/train'", two)
    deep = write_zip(tmp_path / "deep.zip", {"x/a/1.png": b"", "x/a/deep/2.png": b""})
    refused("deep.zip/x/a/deep/2.png must be a file .jpg", deep, "x")
    refused("two.zip/x/val has no folders of images", two, "x/val")
    refused("empty.zip has no class/file", write_zip(tmp_path / "empty.zip", {"a.txt": b""}))
    (tmp_path / "cut.zip").write_bytes(two.read_bytes()[:-9])
    refused("cut.zip: not a zip, or a truncated one", tmp_path / "cut.zip")
    bzip2 = write_zip(tmp_path / "bzip2.zip", {"a/1.png": b"1"}, methods=[zipfile.ZIP_BZIP2])
    refused("a/1.png is encrypted or uses an unsupported compression", bzip2)
    empty = write_zip(tmp_path / "class.zip", {"a/1.png": b"", "b/": b""})
    refused("class.zip/b has no image", empty)


def test_a_removed_file_is_named(tmp_path):
    source = ImageFolder(write_folder(tmp_path, contents()))
    os.remove(tmp_path / "cat/1.jpeg")
    with pytest.raises(
        InputError, match=r"cat/1\.jpeg cannot be read \(No such file or directory\)"
    ):
        source[1]


def test_digests(tmp_path):
    def digest(path, **spec):
        return sources.load(dict(name="image_folder", path=str(path), **spec)).digest()

    named = contents()
    path = write_zip(tmp_path / "a.zip", below("root", named))
    same = write_zip(tmp_path / "b.zip", below("root", named), methods=[zipfile.ZIP_STORED])
    assert digest(path) == digest(same, root="root") == digest(path, root=None)
    named["cat/1.jpeg"] = encoded(picture(8, 8, seed=5), "JPEG")
    assert digest(write_zip(tmp_path / "c.zip", named)) != digest(path)
    folder = write_folder(tmp_path / "images", named)
    before = digest(folder)
    write_folder(folder, {"cat/2.jpg": b""})
    assert digest(folder) != before


def ten_each(tmp_path):
    named = {f"{c}/{i}.png": encoded(picture(4 + i, 9, i)) for c in ("a", "b") for i in range(10)}
    return dict(name="image_folder", path=str(write_zip(tmp_path / "a.zip", named)))


def test_held_out_images(tmp_path):
    spec = ten_each(tmp_path)
    parts = {
        split: sources.load({**spec, "split": split, "held_out": 3})
        for split in ("train", "validation")
    }
    assert np.bincount(parts["train"].labels).tolist() == [7, 7]
    assert np.bincount(parts["validation"].labels).tolist() == [3, 3]
    indices = np.concatenate([part.indices for part in parts.values()])
    assert sorted(indices) == list(range(20))
    # Another choice would let validation images into a run that goes on.
    assert parts["validation"].indices.tolist() == [2, 4, 6, 11, 13, 19]
    few = sources.load({**spec, "split": "train", "held_out": 3, "per_class": 2})
    assert np.bincount(few.labels).tolist() == [2, 2]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (dict(split="train"), "split and held_out together, got 'train' and None"),
        (dict(held_out=2), "split and held_out together, got None and 2"),
        (dict(split="test", held_out=2), "split is 'train' or 'validation'"),
        (
            dict(split="train", held_out=11),
            "class must be at most the 10 images of class 'a', got 11",
        ),
        (dict(split="validation", held_out=0), "at most the 10 images"),
        (dict(split="train", held_out=10), "held_out=10 leaves no image of 'a' to train on"),
        (
            dict(copies=2),
            "no field 'copies'; use name, path, root, split, held_out, upright, standin, per_class",
        ),
    ],
)
def test_wrong_specs(tmp_path, fields, said):
    with pytest.raises(InputError, match=said):
        sources.load({**ten_each(tmp_path), **fields})
    with pytest.raises(InputError, match="needs the field 'path'"):
        sources.load({"name": "image_folder"})


def test_batches_of_images_of_many_sizes(tmp_path):
    source = sources.load(ten_each(tmp_path))

    def transform(example):
        return {**example, "image": square(example["image"], 4)}

    batch = next(loader.iterate(loader.batches(source, 20, seed=0, transform=transform), 0, 1))
    assert (
        batch["image"].shape == (20, 4, 4, 3) and np.bincount(batch["label"]).tolist() == [10] * 2
    )


def test_what_is_no_file(tmp_path):
    folder = write_folder(tmp_path / "images", contents())
    link, pipe = folder / "eel", folder / "dog" / "pipe.jpg"
    link.symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match=f"{link} is a broken link; fix or remove it"):
        ImageFolder(folder)
    link.unlink()
    os.mkfifo(pipe)
    with pytest.raises(InputError, match=f"{pipe} is a pipe or a device, not a file; remove it"):
        ImageFolder(folder)
    # Links to images are usual and many, so that a link is looked at when it is read.
    pipe.rename(tmp_path / "pipe")
    pipe.symlink_to(tmp_path / "pipe")
    with pytest.raises(InputError, match=f"{pipe} is not a file; remove it"):
        ImageFolder(folder)[4]
    pipe.unlink()
    pipe.symlink_to(folder / "dog" / "a.jpg")
    assert len(ImageFolder(folder)) == 5
    np.testing.assert_array_equal(ImageFolder(folder)[4]["image"], ImageFolder(folder)[2]["image"])
