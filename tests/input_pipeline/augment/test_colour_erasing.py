"""Colour jitter and 3-Augment against Pillow, random erasing by its distribution."""

import itertools
import math

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from input_pipeline.augment.colour import colour_jitter, three_augment
from input_pipeline.augment.erasing import random_erasing
from tests.input_pipeline.augment.photographs import photograph


class Given(np.random.Generator):
    """Randomness that is known before."""

    def __init__(self, uniform, order):
        super().__init__(np.random.PCG64())
        self.uniform_numbers, self.order = np.array(uniform), order

    def random(self, shape):
        assert shape == len(self.uniform_numbers)
        return self.uniform_numbers

    def permutation(self, n):
        assert n == len(self.order)
        return np.array(self.order)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_jitter_is_pillows_in_every_order(order):
    image = photograph(40, 50)
    uniform, strength = np.array([0.9, 0.2, 0.6]), 0.3
    theirs = Image.fromarray(image)
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for which in order:
        theirs = kinds[which](theirs).enhance(0.7 + 0.6 * uniform[which])
    ours = colour_jitter({"image": image, "label": 3}, Given(uniform, order), strength)
    assert ours["label"] == 3
    error = np.abs(ours["image"].astype(int) - np.asarray(theirs))
    assert error.max() <= 2 and (error > 0).mean() < 0.01


def test_jitter_draws_uniformly():
    """Brightness of one colour, which has no contrast and no colour of its own."""
    image, rng = np.full((1, 1, 3), 100, np.uint8), np.random.default_rng(0)
    found = [colour_jitter({"image": image}, rng, 0.3)["image"][0, 0, 0] for _ in range(3000)]
    counts = np.bincount(found)[70:130]  # from 70.0 to 129.99, cut off
    assert counts.sum() == 3000 and stats.chisquare(counts).pvalue > 0.01
    strong = [colour_jitter({"image": image}, rng, 1.5)["image"][0, 0, 0] for _ in range(300)]
    assert min(strong) < 5 and max(strong) > 235 and strong.count(0) < 10  # no factor below 0


def test_jitter_draws_every_order():
    image = photograph(6, 6)
    found = {
        colour_jitter({"image": image}, Given([0.9, 0.1, 0.8], order), 0.9)["image"].tobytes(): 0
        for order in itertools.permutations(range(3))
    }
    assert len(found) == 6  # the image tells the orders apart

    class Fixed(np.random.Generator):
        """Fixed factors, random order."""

        def random(self, shape):
            return np.array([0.9, 0.1, 0.8])

    fixed = Fixed(np.random.PCG64(0))

    for _ in range(1200):
        found[colour_jitter({"image": image}, fixed, 0.9)["image"].tobytes()] += 1
    assert stats.chisquare(list(found.values())).pvalue > 0.01


def test_one_of_three():
    image, rng = photograph(24, 24), np.random.default_rng(0)
    grey = np.asarray(ImageOps.grayscale(Image.fromarray(image)).convert("RGB")).astype(int)
    solarized = np.asarray(ImageOps.solarize(Image.fromarray(image)))
    kinds, blurs = [], []
    for _ in range(900):
        example = three_augment({"image": image, "label": 3}, rng)
        found = example["image"]
        assert found.shape == image.shape and found.dtype == np.uint8 and example["label"] == 3
        if np.abs(found - grey).max() <= 1:
            kinds.append(0)
        elif (found == solarized).all():
            kinds.append(1)
        else:
            kinds.append(2)
            blurs.append(found.astype(float))
    assert stats.chisquare(np.bincount(kinds, minlength=3)).pvalue > 0.01
    # Blurred, from not at all to with a deviation of two pixels, and of about the same mean.
    roughness = [np.abs(np.diff(blur, axis=1)).mean() for blur in blurs]
    own = np.abs(np.diff(image.astype(float), axis=1)).mean()
    assert max(roughness) == pytest.approx(own) and min(roughness) < 0.5 * own
    np.testing.assert_allclose(np.mean([b.mean() for b in blurs]), image.mean(), rtol=0.02)


def erased(count, shape=(80, 120, 3), **arguments):
    """What is left of a black image: a mask an image, None where nothing was erased."""
    image, rng = np.zeros(shape, np.uint8), np.random.default_rng(0)
    masks, values = [], []
    for _ in range(count):
        example = random_erasing({"image": image, "label": 3}, rng, **arguments)
        found = example["image"]
        assert found.shape == shape and found.dtype == np.uint8 and example["label"] == 3
        changed = found.any(axis=-1)
        masks.append(changed if changed.any() else None)
        values.append(found[changed])
    assert not image.any()
    return masks, np.concatenate(values)


def box_of(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return rows[0], columns[0], np.ptp(rows) + 1, np.ptp(columns) + 1


def test_erased_boxes():
    masks, _ = erased(1200, probability=1.0)
    top, left, h, w = np.transpose([box_of(mask) for mask in masks if mask is not None])
    assert len(h) == 1200 and h.max() < 80 and w.max() < 120
    for mask, box in zip(masks, zip(h, w, strict=True), strict=True):
        assert mask.sum() > 0.99 * np.prod(box)  # black noise is rare, so a box it is
    rng = np.random.default_rng(1)
    pixels = 80 * 120 * rng.uniform(0.02, 1 / 3, 10**5)
    aspect = np.exp(rng.uniform(math.log(0.3), -math.log(0.3), 10**5))
    wanted_h, wanted_w = np.rint(np.sqrt(pixels * aspect)), np.rint(np.sqrt(pixels / aspect))
    fits = (wanted_h < 80) & (wanted_w < 120)
    assert stats.ks_2samp(h * w, (wanted_h * wanted_w)[fits]).pvalue > 0.01
    assert stats.ks_2samp(h / w, (wanted_h / wanted_w)[fits]).pvalue > 0.01
    for start, length, whole in ((top, h, 80), (left, w, 120)):
        place = (start + rng.random(1200)) / (whole - length + 1)
        assert stats.kstest(place, "uniform").pvalue > 0.01


def test_erasing_probability():
    masks, _ = erased(1500, (20, 20, 1), probability=0.25)
    share = np.mean([mask is not None for mask in masks])
    assert abs(share - 0.25) < 0.035
    assert erased(50, (20, 20, 1), probability=0.0)[0] == [None] * 50


def test_erased_values_are_normal_in_normalised_space():
    """Standard normal once ImageNet's mean and deviation are taken out, but for the ends."""
    _, values = erased(600, (64, 64, 3), probability=1.0)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    assert len(values) > 200_000
    for channel in range(3):
        ends = stats.norm(255 * mean[channel], 255 * std[channel])
        counts = np.bincount(values[:, channel], minlength=256)
        wanted = np.diff(ends.cdf([-np.inf, *np.arange(0.5, 255), np.inf]))
        assert stats.chisquare(counts, len(values) * wanted).pvalue > 0.001
        assert wanted[0] + wanted[255] < 0.05
        assert abs(values[:, channel].mean() - wanted @ np.arange(256)) < 0.4
    correlation = np.corrcoef(values.T) - np.eye(3)
    assert np.abs(correlation).max() < 0.02


def test_a_box_that_never_fits_is_not_erased():
    masks, _ = erased(20, (10, 10, 3), probability=1.0, area=(1.0, 1.0))
    assert masks == [None] * 20
