"""Random resized crops by their distribution, and what is evaluated."""

import math

import numpy as np
import pytest
from scipy import stats

from input_pipeline.augment import crop
from input_pipeline.augment.crop import random_resized_crop, resized_central_crop
from input_pipeline.augment.resize import resize, square
from tests.input_pipeline.augment.photographs import photograph


def coordinates(height, width):
    """Channel 0 is the row, channel 1 the column; floats, so that crops can be told exactly."""
    return np.stack(np.mgrid[:height, :width], axis=-1).astype(np.float32)


def boxes(height, width, count, **arguments):
    """Top, left, height and width of `count` crops, of the coordinates that they show."""
    image, rng, found = coordinates(height, width), np.random.default_rng(0), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crop, "resize", lambda part, size: part)
        for _ in range(count):
            part = random_resized_crop({"image": image}, rng, size=8, **arguments)["image"]
            (top, left), (bottom, right) = part[0, 0], part[-1, -1]
            found.append((top, left, bottom - top + 1, right - left + 1))
            assert part.shape[:2] == (bottom - top + 1, right - left + 1)
    return np.array(found, int).T


def kolmogorov(values, cdf):
    return stats.kstest(values, cdf).pvalue


def test_areas_and_ratios_are_uniform():
    """In an image that all of them fit into, where rounding to pixels is small."""
    _, _, h, w = boxes(1000, 1000, 2000, scale=(0.08, 0.5))
    assert kolmogorov(h * w / 1e6, stats.uniform(0.08, 0.42).cdf) > 0.01
    logs = np.log(w / h) / math.log(4 / 3)
    assert kolmogorov(logs, stats.uniform(-1, 2).cdf) > 0.01
    assert abs(stats.spearmanr(h * w, logs).statistic) < 0.05


def test_all_of_the_usual_range():
    """What does not fit is drawn again: shares by a float64 rejection with a generator of its own.

    The middle, after ten failures, is too rare to show.
    """
    _, _, h, w = boxes(375, 500, 2000)
    rng = np.random.default_rng(1)
    pixels = 375 * 500 * rng.uniform(0.08, 1, 10**5)
    ratio = np.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3), 10**5))
    fits = (np.rint(np.sqrt(pixels * ratio)) <= 500) & (np.rint(np.sqrt(pixels / ratio)) <= 375)
    assert stats.ks_2samp(h * w, pixels[fits]).pvalue > 0.01
    assert stats.ks_2samp(w / h, ratio[fits]).pvalue > 0.01
    assert h.max() <= 375 and w.max() <= 500 and (h * w).min() >= 0.079 * 375 * 500


def test_every_place_is_as_likely():
    top, left, h, w = boxes(30, 40, 4000, scale=(0.25, 0.25), ratio=(0.75, 0.75))
    assert (h == 20).all() and (w == 15).all()
    for found, places in ((top, 11), (left, 26)):
        counts = np.bincount(found, minlength=places)
        assert len(counts) == places
        assert stats.chisquare(counts).pvalue > 0.01


@pytest.mark.parametrize(
    ("shape", "middle"),
    [
        ((100, 10), (43, 0, 13, 10)),  # too narrow: as high as 3/4 allows
        ((10, 100), (0, 43, 10, 13)),
        ((12, 10), (0, 0, 12, 10)),
    ],
)
def test_the_middle_where_nothing_fits(shape, middle):
    found = boxes(*shape, 3, scale=(1.5, 2.0))
    np.testing.assert_array_equal(found, np.transpose([middle] * 3))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(375, 500), (20, 300), (1, 1), (500, 333)])
def test_size_and_kind_of_a_crop(shape, channels):
    image, rng = photograph_or_grey(shape, channels), np.random.default_rng(0)
    for _ in range(5):
        example = random_resized_crop({"image": image, "label": 3}, rng, size=32)
        assert example["image"].shape == (32, 32, channels)
        assert example["image"].dtype == np.uint8 and example["label"] == 3


def photograph_or_grey(shape, channels):
    if min(shape) > 1:
        return photograph(*shape, channels)
    return np.full((*shape, channels), 7, np.uint8)


def test_a_crop_is_resized_by_the_one_rule():
    image = photograph(60, 80)
    rngs = [np.random.default_rng(5) for _ in range(2)]
    found = random_resized_crop({"image": image}, rngs[0], size=16, scale=(0.3, 0.9))["image"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crop, "resize", lambda part, size: part)
        part = random_resized_crop({"image": image}, rngs[1], size=16, scale=(0.3, 0.9))["image"]
    np.testing.assert_array_equal(found, resize(part, 16))


@pytest.mark.parametrize(
    ("shape", "size", "ratio", "resized"),
    [
        ((375, 500), 224, 0.875, (256, 341)),
        ((500, 375), 224, 0.875, (341, 256)),
        ((100, 90), 160, 0.9, (196, 177)),
        ((40, 40), 24, 1.0, (24, 24)),
    ],
)
def test_evaluation_resizes_the_shorter_side(shape, size, ratio, resized):
    image = photograph(*shape)
    found = resized_central_crop({"image": image, "label": 3}, size, ratio)
    whole = resize(image, resized)
    top, left = (resized[0] - size) // 2, (resized[1] - size) // 2
    np.testing.assert_array_equal(found["image"], whole[top : top + size, left : left + size])
    assert found["label"] == 3 and found["image"].shape == (size, size, 3)


def test_evaluation_without_a_margin_shows_the_square():
    image = photograph(64, 80)
    found = resized_central_crop({"image": image}, 32, 1.0)["image"].astype(int)
    assert np.abs(found - square(image, 32)).max() <= 1
