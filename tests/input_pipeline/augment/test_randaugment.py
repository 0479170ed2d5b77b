"""RandAugment: what an operation does at a magnitude, and how often it is drawn."""

import dataclasses
import functools

import numpy as np
import pytest
from scipy import stats

from input_pipeline.augment import randaugment
from input_pipeline.augment.randaugment import OPERATIONS, operate, rand_augment
from tests.input_pipeline.augment.photographs import photograph

# The argument at magnitudes 0, 5, 10 and 15: as timm tells them, its upper bound lifted.
INCREASING = {
    "Rotate": (0, 15, 30, 45),
    "Posterize": (4, 2, 0, 0),
    "Solarize": (256, 128, 0, -128),
    "SolarizeAdd": (0, 55, 110, 165),
    "Color": (1, 1.45, 1.9, 2.35),
    "Contrast": (1, 1.45, 1.9, 2.35),
    "Brightness": (1, 1.45, 1.9, 2.35),
    "Sharpness": (1, 1.45, 1.9, 2.35),
    "ShearX": (0, 0.15, 0.3, 0.45),
    "ShearY": (0, 0.15, 0.3, 0.45),
    "TranslateX": (0, 0.225, 0.45, 0.675),
    "TranslateY": (0, 0.225, 0.45, 0.675),
}
ENHANCED = ("Color", "Contrast", "Brightness", "Sharpness")
NOT_INCREASING = {
    **INCREASING,
    "Posterize": (0, 2, 4, 6),
    "Solarize": (0, 128, 256, 384),
    **{name: (0.1, 1, 1.9, 2.8) for name in ENHANCED},
}
MAGNITUDES = (0, 5, 10, 15)
SIGNED = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")


def test_the_set_is_complete():
    assert set(OPERATIONS) == {"AutoContrast", "Equalize", "Invert", *INCREASING}


@pytest.mark.parametrize("name", OPERATIONS)
def test_arguments(name, monkeypatch):
    """Seen where the operation gets them."""
    seen = []

    def spy(image, *arguments):
        seen.append(arguments)
        return image

    row = OPERATIONS[name]
    monkeypatch.setitem(OPERATIONS, name, dataclasses.replace(row, apply=spy))
    for increasing, table in ((True, INCREASING), (False, NOT_INCREASING)):
        for sign in (1, -1):
            seen.clear()
            for magnitude in MAGNITUDES:
                operate(np.zeros((4, 4, 3), np.uint8), name, magnitude, sign, increasing, 99)
            if name not in table:
                assert seen == [()] * 4
                continue
            wanted = table[name]
            if sign < 0 and name in SIGNED:
                wanted = [-value for value in wanted]
            if sign < 0 and increasing and name in ENHANCED:
                wanted = [max(0.1, 2 - value) for value in wanted]
            assert [found[0] for found in seen] == pytest.approx(wanted)
            assert [found[1:] for found in seen] == [(99,) if name in SIGNED else ()] * 4


@pytest.mark.parametrize("magnitude", [0, 2.5, 9, 10, 15, 30])
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_any_magnitude_gives_an_image(name, magnitude, channels):
    image = photograph(24, 32, channels)
    before = image.copy()
    for increasing in (True, False):
        for sign in (1, -1):
            found = operate(image, name, magnitude, sign, increasing, 128)
            assert found.shape == image.shape and found.dtype == np.uint8
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("name", [name for name in INCREASING if name != "SolarizeAdd"])
def test_increasing_is_increasing(name):
    """Its mean change of a photograph."""
    image = photograph(48, 48).astype(int)
    changes = [
        np.abs(operate(image.astype(np.uint8), name, m, 1, True, 128) - image).mean()
        for m in (2, 6, 10)
    ]
    assert changes == sorted(changes) and changes[0] < changes[2]


def drawn(monkeypatch, count=3000, **arguments):
    """Per image, the (name, magnitude, sign, increasing, fill) of its operations."""
    found = []

    def spy(image, *operation):
        found[-1].append(operation)
        return image

    monkeypatch.setattr(randaugment, "operate", spy)
    rng = np.random.default_rng(0)
    for _ in range(count):
        found.append([])
        example = rand_augment({"image": None, "label": 3}, rng, **arguments)
        assert example["label"] == 3
    return found


def test_all_operations_and_both_signs_are_as_likely(monkeypatch):
    found = drawn(monkeypatch, layers=2, magnitude=10)
    assert all(len(operations) == 2 for operations in found)
    pairs = [(a[0], b[0]) for a, b in found]
    names = list(OPERATIONS)
    table = np.zeros((15, 15))
    for a, b in pairs:
        table[names.index(a), names.index(b)] += 1
    assert stats.chisquare(table.ravel()).pvalue > 0.01  # with itself as well
    signs = np.array([operation[2] for operations in found for operation in operations])
    assert set(signs) == {1, -1} and abs(signs.mean()) < 0.04
    assert {operation[1] for operations in found for operation in operations} == {10}
    assert {operation[3:] for operations in found for operation in operations} == {(False, 128)}


def test_probability(monkeypatch):
    found = drawn(monkeypatch, layers=3, magnitude=9, probability=0.5, increasing=True, fill=7)
    counts = np.bincount([len(operations) for operations in found], minlength=4)
    wanted = 3000 * stats.binom(3, 0.5).pmf(range(4))
    assert stats.chisquare(counts, wanted).pvalue > 0.01
    assert {operation[3:] for operations in found for operation in operations} == {(True, 7)}
    assert not any(drawn(monkeypatch, 50, layers=3, magnitude=9, probability=0.0))


def test_magnitudes_are_normal_and_end_at_the_ends(monkeypatch):
    magnitudes = lambda **arguments: np.array(  # noqa: E731
        [operation[1] for ops in drawn(monkeypatch, layers=1, **arguments) for operation in ops]
    )
    found = magnitudes(magnitude=5, std=0.5)
    assert stats.kstest(found, stats.norm(5, 0.5).cdf).pvalue > 0.01
    high = magnitudes(magnitude=9, std=0.5)
    assert high.max() == 10 and abs((high == 10).mean() - stats.norm.sf(2)) < 0.01
    low = magnitudes(magnitude=0, std=1)
    assert low.min() == 0 and abs((low == 0).mean() - 0.5) < 0.04
    assert magnitudes(magnitude=15, std=1).max() == 15


def test_the_same_randomness_gives_the_same_image():
    image = photograph(32, 32)
    augment = functools.partial(
        rand_augment, {"image": image}, layers=4, magnitude=9, std=0.5, increasing=True
    )
    first, again, other = (augment(np.random.default_rng(s))["image"] for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
