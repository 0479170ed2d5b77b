import jax
import numpy as np
import pytest

from imagen_ft.metrics import statistics
from imagen_ft.metrics.statistics import Moments, merge_hosts, of_features
from launch.errors import InputError

# A mean that is large beside the deviations, in which a sum of squares would drown.
FEATURES = (1e6 + np.random.default_rng(0).standard_normal((9000, 5))).astype(np.float64)


def moments_of(*parts):
    moments = Moments(5)
    for part in parts:
        moments.add(part)
    return moments


def assert_same(found, expected):
    assert found.num_images == expected.num_images
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-14)
    np.testing.assert_allclose(found.covariance, expected.covariance, rtol=0, atol=1e-9)


def merged_halves():
    first, second = moments_of(FEATURES[:1234]), moments_of(FEATURES[1234:])
    first.merge(second)
    return first


def of_four_processes(monkeypatch, cuts):
    parts = [moments_of(part) for part in np.split(FEATURES, cuts)]
    sent = []
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    monkeypatch.setattr(statistics.multihost_utils, "process_allgather", sent.append)
    for part in parts:
        with pytest.raises(TypeError):  # nothing is gathered yet
            merge_hosts(part)
    monkeypatch.setattr(statistics.multihost_utils, "process_allgather", lambda own: np.stack(sent))
    return merge_hosts(parts[0])


@pytest.mark.parametrize("cuts", [[2000, 3000, 8999], [0, 5000, 5000]])
def test_four_processes_are_one_pass(monkeypatch, cuts):
    assert_same(
        of_four_processes(monkeypatch, cuts).statistics(), moments_of(FEATURES).statistics()
    )


def test_parts_are_one_pass():
    expected = moments_of(FEATURES).statistics()
    np.testing.assert_allclose(expected.mean, FEATURES.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(
        expected.covariance, np.cov(FEATURES, rowvar=False), rtol=0, atol=1e-9
    )
    assert_same(merged_halves().statistics(), expected)
    batches = [FEATURES[start : start + 7] for start in range(0, len(FEATURES), 7)]
    assert_same(moments_of(*batches, FEATURES[:0]).statistics(), expected)


def test_one_process_keeps_its_own():
    moments = moments_of(FEATURES)
    assert merge_hosts(moments) is moments


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: moments_of(FEATURES[:1]).statistics(), "images must be at least 2, got 1"),
        (lambda: moments_of(FEATURES[:, :4]), "must be 5 wide, as before, got 4"),
        (lambda: moments_of(FEATURES).merge(Moments(4)), "must be 5 wide in all parts, got 4"),
        (
            lambda: of_features(np.where(FEATURES == FEATURES[7], np.nan, FEATURES)),
            "features must be finite, got NaN or infinity for image 7",
        ),
    ],
)
def test_wrong_features_are_refused(action, message):
    with pytest.raises(InputError, match=message):
        action()


def test_huge_features_are_finite():
    huge = np.full((3, 2), 1.7e308)
    statistics.check_finite("features", huge)
