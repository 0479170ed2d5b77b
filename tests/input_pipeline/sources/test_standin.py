"""Drawn images where there are none: always the same, and told."""

import pickle

import numpy as np
import pytest

from input_pipeline import sources
from input_pipeline.sources import standin
from launch.errors import InputError

FIELDS = dict(class_names=("a", "b", "c"), images=4, size=16, seed=0)


def spec(path, **fields):
    return dict(name="image_folder", path=str(path), standin=FIELDS | fields)


def test_it_stands_for_what_is_missing_and_says_so_once(tmp_path, capsys):
    standin._tell.cache_clear()
    path = tmp_path / "none"
    whole = sources.load(spec(path))
    part = sources.load(dict(spec(path), held_out=1, split="validation"))
    assert capsys.readouterr().err.count(f"{path} does not exist: using drawn shapes") == 1
    assert (
        whole.class_names == ("a", "b", "c")
        and whole.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    )
    assert part.labels.tolist() == [0, 1, 2] and not list(tmp_path.iterdir())


def test_what_is_there_is_read(tmp_path):
    path = tmp_path / "set"
    (path / "cat").mkdir(parents=True)
    (path / "cat" / "x.png").write_bytes(b"")
    assert sources.load(spec(path)).class_names == ("cat",)


def test_images_never_change():
    source = standin.StandIn(**FIELDS)
    images = [source[i]["image"] for i in range(len(source))]
    assert {(image.shape, image.dtype.name) for image in images} == {((16, 16, 3), "uint8")}
    assert len({image.tobytes() for image in images}) == len(images)
    again = pickle.loads(pickle.dumps(source))
    assert all(np.array_equal(again[i]["image"], image) for i, image in enumerate(images))
    # Other images would need another number in the digest.
    assert source.digest() == "standin-1:3x4:16px:0"
    means = np.mean([image.astype(float) for image in images], axis=(0, 1, 2))
    assert means == pytest.approx([72.18, 65.77, 69.31], abs=0.01)


def test_classes_differ_more_than_their_images():
    source = standin.StandIn(**dict(FIELDS, class_names=tuple(map(str, range(20))), images=6))
    images = np.stack([source[i]["image"] for i in range(len(source))]).astype(float)
    flat = images[:, :3, :3].mean((1, 2))  # the ground
    apart = np.linalg.norm(flat[:, None] - flat[None], axis=-1) + np.diag(np.full(len(flat), 1e9))
    assert (source.labels[apart.argmin(1)] == source.labels).mean() > 0.9


def test_imagenet_has_its_classes_and_other_seeds_other_images():
    fields = dict(class_names="imagenet", images=2, size=8)
    train, val = (standin.make(fields | dict(seed=seed), "x") for seed in (0, 1))
    assert len(train) == 2000 and train.class_names[:2] == ("n01440764", "n01443537")
    assert not np.array_equal(train[0]["image"], val[0]["image"])
    assert train.digest() != val.digest() and train.key(3) != val.key(3)


@pytest.mark.parametrize("fields", [dict(sizes=3), dict(seed=None)])
def test_wrong_fields(tmp_path, fields):
    chosen = {name: value for name, value in (FIELDS | fields).items() if value is not None}
    with pytest.raises(InputError, match=r"standin must have .*got class_names, images"):
        sources.load(dict(name="image_folder", path=str(tmp_path / "x"), standin=chosen))
