import dataclasses

import numpy as np
import pytest
from scipy import linalg

from imagen_ft.metrics import frechet
from imagen_ft.metrics.frechet import Labelled, frechet_distance
from imagen_ft.metrics.statistics import Statistics, of_features
from launch.errors import InputError


def features(seed, count=400, width=24, shift=0.0):
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((count, width)) @ np.diag(np.linspace(0.1, 2, width))
    return np.maximum(mixed + shift, 0).astype(np.float32)


def direct(a, b):
    """As pytorch-fid has it: NumPy's covariances, SciPy's root of their product."""
    sigmas = [np.cov(side.astype(float), rowvar=False) for side in (a, b)]
    means = [side.mean(axis=0, dtype=float) for side in (a, b)]
    root = linalg.sqrtm(sigmas[0] @ sigmas[1])
    return np.square(means[0] - means[1]).sum() + np.trace(sum(sigmas) - 2 * root.real)


def gaussian(mean, covariance):
    return Statistics(np.asarray(mean, float), np.asarray(covariance, float))


def test_distance_is_a_direct_computation():
    a, b = features(0), features(1, 500, shift=0.3)
    found = frechet_distance(of_features(a), of_features(b))
    assert found == pytest.approx(direct(a, b), rel=1e-9)


def test_dead_dimensions_change_nothing():
    # As sFID's, of 3 x 3 x 7 channels, some of which are dead: there is no Cholesky factor.
    a, b = (np.reshape(features(seed, 300, 63, 0.2), (300, 3, 3, 7)) for seed in (2, 3))
    a[..., 4] = b[..., 4] = 0
    living = [np.delete(side, 4, axis=-1).reshape(300, -1) for side in (a, b)]
    found = frechet_distance(*(of_features(side.reshape(300, -1)) for side in (a, b)))
    assert found == pytest.approx(direct(*living), rel=1e-9)


@pytest.mark.parametrize("dead", [0, 6])
def test_gaussians_have_a_closed_form(dead):
    a, b = np.linspace(0.1, 3, 10), np.linspace(2, 0.5, 10)
    b[:dead] = 0
    rotation = linalg.qr(np.random.default_rng(4).standard_normal((10, 10)))[0]
    turned = [gaussian(mean, rotation @ np.diag(x**2) @ rotation.T) for mean, x in ((a, a), (b, b))]
    expected = 2 * np.square(a - b).sum()
    for pair in (turned, turned[::-1]):
        # Square roots of eigenvalues that are 0 keep half of the digits.
        found = frechet_distance(*pair)
        assert found == pytest.approx(expected, rel=1e-7 if dead else 1e-12)


def test_a_set_against_itself_is_0_but_for_rounding():
    full, few = of_features(features(5)), of_features(features(5, 20))
    trace = np.trace(full.covariance)
    assert abs(frechet_distance(full, full)) < 1e-12 * trace
    assert abs(frechet_distance(few, few, allow_few_images=True)) < 1e-12 * trace


def test_few_images_are_measured_when_asked_for():
    a, b = features(6, 15), features(7, 20, shift=0.3)
    with pytest.raises(
        InputError, match="images must be above 24, the features' dimensions, got 15"
    ):
        frechet_distance(of_features(a), of_features(b))
    found = frechet_distance(of_features(a), of_features(b), allow_few_images=True)
    assert found == pytest.approx(direct(a, b), rel=1e-5)  # the root of a singular product is rough
    assert frechet.distance_of_features(a, b) == pytest.approx(found, rel=1e-9)
    assert frechet.distance_of_features(a, a) == pytest.approx(0, abs=1e-10)
    both = features(6, 30), features(7, 35)
    assert frechet.distance_of_features(*both) == pytest.approx(direct(*both), rel=1e-9)


def test_relative_distance_of_fresh_real_images_is_1():
    real, held_out, fresh, poor = (
        of_features(features(seed, count, shift=shift))
        for seed, count, shift in ((8, 9000, 0), (9, 2000, 0), (10, 2000, 0), (11, 2000, 0.5))
    )
    assert frechet.relative_distance(fresh, held_out, real) == pytest.approx(1, abs=0.2)
    found = frechet.relative_distance(poor, held_out, real)
    assert found == frechet_distance(poor, real) / frechet_distance(held_out, real) > 10
    with pytest.raises(InputError, match="must be equal, got 2000 and 1999"):
        frechet.relative_distance(dataclasses.replace(poor, num_images=1999), held_out, real)


def test_relative_distance_within_classes():
    def labelled(seed, count, shifts):
        parts = [features(seed + n, count, shift=shift) for n, shift in enumerate(shifts)]
        labels = np.repeat(np.arange(len(shifts)), count)
        return Labelled(np.concatenate(parts), labels)

    real, held_out = labelled(20, 90, [0, 1, 2]), labelled(30, 60, [0, 1])
    found = frechet.relative_distance_of_classes(labelled(40, 50, [0, 2, 2]), held_out, real)
    assert sorted(found) == [0, 1]  # of class 2 nothing was held out
    assert found[0] == pytest.approx(1, abs=0.4)
    assert found[1] > 5
    # Of more synthetic images than held-out ones the first count.
    more = frechet.relative_distance_of_classes(labelled(50, 80, [0]), held_out, real)
    first = Labelled(labelled(50, 80, [0]).features[:60], np.zeros(60, int))
    assert more == frechet.relative_distance_of_classes(first, held_out, real)
    with pytest.raises(InputError, match="held-out images must differ"):
        frechet.relative_distance_of_classes(real, real, real)


def test_distance_at_infinity_has_no_bias():
    # The true distance is 0; that of n images is about c / n.
    reference = gaussian(np.zeros(20), np.eye(20))
    images = np.random.default_rng(12).standard_normal((4000, 20))
    at_all = frechet_distance(of_features(images), reference)
    found = frechet.distance_at_infinity(images, reference)
    assert abs(found) < at_all / 3
    assert found == frechet.distance_at_infinity(images, reference)
    with pytest.raises(InputError, match="far below the number of images, got 15 for 14 images"):
        frechet.distance_at_infinity(images[:14], reference)


def test_another_extractor_s_statistics_are_refused():
    with pytest.raises(InputError, match="the same width, got 24 and 20"):
        frechet_distance(of_features(features(0)), of_features(features(0, width=20)))
