import numpy as np
import pytest

from input_pipeline.augment.crop import central_crop, random_crop, random_shift
from input_pipeline.augment.flip import random_flip
from input_pipeline.batches import loader
from input_pipeline.sources.digits import digits
from launch.errors import InputError


def shifted(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """Independent of the code under test: moves by index, pixel by pixel."""
    result = np.zeros_like(image)
    height, width, _ = image.shape
    for y in range(height):
        for x in range(width):
            if 0 <= y - down < height and 0 <= x - right < width:
                result[y, x] = image[y - down, x - right]
    return result


def test_random_shift_is_one_of_the_possible_shifts_and_finds_all_of_them():
    image = np.arange(1, 31, dtype=np.uint8).reshape(5, 6, 1)
    possible = {shifted(image, d, r).tobytes() for d in (-1, 0, 1) for r in (-1, 0, 1)}
    rng = np.random.default_rng(0)
    found = [random_shift({"image": image, "label": 3}, rng, 1) for _ in range(400)]
    assert {example["image"].tobytes() for example in found} == possible
    assert all(example["label"] == 3 for example in found)
    counts = np.unique([example["image"].tobytes() for example in found], return_counts=True)[1]
    assert counts.min() > 20  # 44 expected


def augmented(**parts: np.ndarray) -> list[np.ndarray]:
    def noisy(example, rng):
        return {**example, "noise": rng.random()}

    data = loader.batches(digits("train"), 8, 5, augment=noisy, **parts)
    return [data[k]["noise"] for k in range(6)]


def test_augmentation_depends_on_seed_and_place_only():
    whole = augmented()
    assert len(np.unique(np.concatenate(whole))) == 48
    parts = [augmented(rows=rows) for rows in np.split(np.arange(8), 2)]
    for k, batch in enumerate(whole):
        np.testing.assert_array_equal(batch, np.concatenate([part[k] for part in parts]))
    other_seed = loader.batches(
        digits("train"), 8, 6, augment=lambda e, rng: {**e, "noise": rng.random()}
    )
    assert not np.isin(other_seed[0]["noise"], whole).any()


def counts_of(augment, image, times):
    """How often each result comes; the other fields stay, and so does what goes in."""
    before, rng, found = image.copy(), np.random.default_rng(0), {}
    for _ in range(times):
        example = augment({"image": image, "label": 3}, rng)
        assert example["label"] == 3
        key = (example["image"].shape, example["image"].tobytes())
        found[key] = found.get(key, 0) + 1
    np.testing.assert_array_equal(image, before)
    return found


def test_random_crop_is_one_of_the_possible_crops_and_finds_all_of_them():
    image = np.arange(5 * 6 * 2, dtype=np.uint8).reshape(5, 6, 2)
    found = counts_of(lambda e, rng: random_crop(e, rng, size=4), image, 600)
    crops = [image[y : y + 4, x : x + 4] for y in range(2) for x in range(3)]
    assert found.keys() == {((4, 4, 2), crop.tobytes()) for crop in crops}
    assert min(found.values()) > 60  # 100 expected


def test_random_crop_of_the_whole_image():
    image = np.arange(16, dtype=np.uint8).reshape(4, 4, 1)
    assert counts_of(lambda e, rng: random_crop(e, rng, 4), image, 5) == {
        ((4, 4, 1), image.tobytes()): 5
    }
    with pytest.raises(InputError, match="a crop must fit the image of 4x4 px, got 5 px"):
        random_crop({"image": image}, np.random.default_rng(0), 5)


def test_random_flip_mirrors_every_other_image():
    image = np.arange(12, dtype=np.uint8).reshape(2, 3, 2)
    found = counts_of(random_flip, image, 400)
    mirrored = np.stack([image[:, 2 - x] for x in range(3)], axis=1)
    assert found.keys() == {((2, 3, 2), data.tobytes()) for data in (image, mirrored)}
    assert 150 < found[(2, 3, 2), image.tobytes()] < 250


def test_central_crop():
    image = np.arange(35, dtype=np.uint8).reshape(7, 5, 1)
    found = central_crop({"image": image, "label": 3}, 3)
    assert found["label"] == 3
    np.testing.assert_array_equal(found["image"], image[2:5, 1:4])
