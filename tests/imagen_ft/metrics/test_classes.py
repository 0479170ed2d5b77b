import numpy as np
import pytest
from sklearn.metrics import f1_score

from imagen_ft.metrics.classes import diversity, recognizability
from launch.errors import InputError

RANDOM = np.random.default_rng(0)
LABELS = np.repeat([2, 5, 9, 11], 30)
PREDICTED = np.where(RANDOM.random(120) < 0.6, LABELS, RANDOM.integers(0, 20, 120))


def test_recognizability_is_the_mean_f1():
    mean, scores = recognizability(PREDICTED, LABELS)
    expected = f1_score(LABELS, PREDICTED, labels=[2, 5, 9, 11], average=None)
    assert list(scores) == [2, 5, 9, 11]
    assert list(scores.values()) == pytest.approx(expected)
    assert mean == pytest.approx(expected.mean())
    assert recognizability(LABELS, LABELS)[0] == 1


def test_diversity_is_the_deviation_within_classes():
    features = RANDOM.standard_normal((6000, 8)) * np.repeat([1.0, 3.0], 3000)[:, None]
    labels = np.repeat([0, 7], 3000)
    features[:3000] += 100
    mean, deviations = diversity(features, labels)
    assert deviations == pytest.approx({0: 1, 7: 3}, rel=0.02)
    assert mean == pytest.approx(2, rel=0.02)
    # A class of one image has none.
    assert list(diversity(features[2990:3001], labels[2990:3001])[1]) == [0]


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: recognizability(LABELS[:0], LABELS[:0]), "at least one image, got none"),
        (lambda: diversity(np.ones((3, 2)), np.arange(3)), "diversity needs at least 2 images"),
        (lambda: diversity(np.full((3, 2), np.nan), np.zeros(3, int)), "features must be finite"),
    ],
)
def test_wrong_arguments_are_refused(action, message):
    with pytest.raises(InputError, match=message):
        action()
