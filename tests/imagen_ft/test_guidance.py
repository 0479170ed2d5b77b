import numpy as np
import pytest

from imagen_ft.guidance import guided_eps, threshold


class Network:
    """eps = x * (mean of its text); remembers what it was called with."""

    def __init__(self, *texts):
        self.text, self.batches = np.concatenate(texts), []

    def __call__(self, x):
        assert len(x) == len(self.text)
        self.batches.append(len(x))
        return x * self.text.mean(axis=(1, 2)).reshape(-1, 1, 1, 1)


def inputs():
    rng = np.random.default_rng(0)
    return (rng.normal(size=s).astype(np.float32) for s in ((3, 2, 2, 1), (3, 4, 5), (3, 4, 5)))


def test_weight_one_is_one_undoubled_evaluation():
    x, text, _ = inputs()
    network = Network(text)
    np.testing.assert_array_equal(guided_eps(network, x, 1.0), Network(text)(x))
    assert network.batches == [3]


@pytest.mark.parametrize("weight", [0.0, 1.25, 7.0])
def test_other_weights_are_one_doubled_evaluation(weight):
    x, text, null = inputs()
    network = Network(text, null)
    expected = weight * Network(text)(x) + (1 - weight) * Network(null)(x)
    np.testing.assert_allclose(guided_eps(network, x, weight), expected, atol=1e-6)
    assert network.batches == [6]


def test_static_threshold():
    x0 = np.float32([-3, -1, -0.5, 0, 0.9, 1.1]).reshape(1, 2, 3, 1)
    np.testing.assert_array_equal(threshold(x0, 100.0), np.clip(x0, -1, 1))


@pytest.mark.parametrize("percentile", [50.0, 95.0, 99.5])
def test_dynamic_threshold(percentile):
    rng = np.random.default_rng(0)
    # One image that needs none of it, and two that do, each by its own measure.
    x0 = rng.normal(size=(3, 8, 8, 3)) * np.array([0.2, 2, 5]).reshape(3, 1, 1, 1)
    x0 = x0.astype(np.float32)
    limit = np.percentile(np.abs(x0), percentile, axis=(1, 2, 3)).reshape(3, 1, 1, 1)
    assert limit[0] < 1 < limit[1] < limit[2]
    limit = np.maximum(limit, 1)
    found = np.asarray(threshold(x0, percentile))
    np.testing.assert_allclose(found, np.clip(x0, -limit, limit) / limit, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[0], x0[0])
    assert np.abs(found[1:]).max() == 1
