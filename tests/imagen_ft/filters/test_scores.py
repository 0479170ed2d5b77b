"""Scores against SciPy and against scikit-learn's neighbours."""

import numpy as np
import pytest
from scipy import special
from scipy.spatial import distance
from sklearn.preprocessing import normalize

from imagen_ft.filters import scores
from launch.errors import InputError

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(scale=5, size=(40, 4)).astype(np.float32)
LABELS = RNG.integers(0, 4, 40)
FEATURES, REAL = (RNG.normal(size=(n, 6)).astype(np.float32) for n in (40, 30))
REAL_LABELS = np.arange(30) % 4


def test_confidence_is_the_softmax():
    expected = special.softmax(LOGITS.astype(np.float64), axis=1)[np.arange(40), LABELS]
    np.testing.assert_allclose(scores.confidence(LOGITS, LABELS), expected, rtol=1e-12)
    # A difference that float32 has no room for.
    assert scores.confidence(np.array([[1e4, 0.0]], np.float32), np.array([1])) == 0


def test_margin_is_positive_where_the_classifier_agrees():
    found = scores.margin(LOGITS, LABELS)
    np.testing.assert_array_equal(found > 0, LOGITS.argmax(axis=1) == LABELS)
    logs = special.log_softmax(LOGITS.astype(np.float64), axis=1)
    others = np.where(np.eye(4, dtype=bool)[LABELS], -np.inf, logs).max(axis=1)
    np.testing.assert_allclose(found, logs[np.arange(40), LABELS] - others, rtol=1e-9)


def test_distances_to_real_images():
    pairs = distance.cdist(normalize(FEATURES.astype(float)), normalize(REAL.astype(float)))
    own = LABELS[:, None] == REAL_LABELS[None]
    nearest = [np.where(of, pairs, np.inf).min(axis=1) for of in (own, ~own)]
    found = scores.nearest_real(FEATURES, LABELS, REAL, REAL_LABELS)
    np.testing.assert_allclose(found, nearest[1] - nearest[0], atol=1e-7)
    inside = np.sort(np.where(own, pairs, np.inf), axis=1)
    for k in (1, 3):
        found = scores.class_distance(FEATURES, LABELS, REAL, REAL_LABELS, k)
        np.testing.assert_allclose(found, inside[:, :k].mean(axis=1), atol=1e-7)
    # A class has 7 or 8 real images: those are all.
    all_of_them = scores.class_distance(FEATURES, LABELS, REAL, REAL_LABELS, 100)
    np.testing.assert_allclose(all_of_them, (pairs * own).sum(axis=1) / own.sum(axis=1), atol=1e-7)


def test_a_class_without_real_images_is_told():
    for score in (scores.nearest_real, lambda *args: scores.class_distance(*args, k=1)):
        with pytest.raises(
            InputError, match=r"config\.real must have images of every class.*label 3"
        ):
            score(FEATURES, LABELS, REAL[REAL_LABELS < 3], REAL_LABELS[REAL_LABELS < 3])
    with pytest.raises(InputError, match="at least 2 classes"):
        scores.nearest_real(FEATURES, np.zeros(40, int), REAL, np.zeros(30, int))
