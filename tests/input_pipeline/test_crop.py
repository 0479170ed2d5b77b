import numpy as np

from input_pipeline import loader, sources
from input_pipeline.augment.crop import random_shift


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


def augmented(**parts: int) -> list[np.ndarray]:
    def noisy(example, rng):
        return {**example, "noise": rng.random()}

    data = loader.batches(sources.digits("train"), 8, 5, augment=noisy, **parts)
    return [data[k]["noise"] for k in range(6)]


def test_augmentation_depends_on_seed_and_place_only():
    whole = augmented()
    assert len(np.unique(np.concatenate(whole))) == 48
    parts = [augmented(process_index=i, process_count=2) for i in range(2)]
    for k, batch in enumerate(whole):
        np.testing.assert_array_equal(batch, np.concatenate([part[k] for part in parts]))
    other_seed = loader.batches(
        sources.digits("train"), 8, 6, augment=lambda e, rng: {**e, "noise": rng.random()}
    )
    assert not np.isin(other_seed[0]["noise"], whole).any()
