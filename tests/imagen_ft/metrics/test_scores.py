"""The inception score, the kernel distance and the sliced distance."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats
from sklearn.metrics.pairwise import polynomial_kernel

from imagen_ft.metrics import points
from imagen_ft.metrics.inception_score import inception_score
from imagen_ft.metrics.kernel_distance import kernel_distance
from imagen_ft.metrics.sliced_distance import distance_along, sliced_distance
from launch.errors import InputError

RANDOM = np.random.default_rng(0)
LOGITS = (4 * RANDOM.standard_normal((205, 12))).astype(np.float32)
A, B = RANDOM.standard_normal((300, 16)), 0.2 + RANDOM.standard_normal((250, 16))


def score_of(logits):
    p = special.softmax(logits.astype(float), axis=1)
    return np.exp(stats.entropy(p, p.mean(axis=0), axis=1).mean())


def test_inception_score_is_a_direct_computation():
    shuffled = LOGITS[np.random.RandomState(2020).permutation(205)]
    borders = [0, 29, 58, 87, 117, 146, 175, 205]  # floor(205 n / 7), as torch-fidelity parts
    scores = [score_of(shuffled[a:b]) for a, b in itertools.pairwise(borders)]
    expected = np.mean(scores), np.std(scores)
    assert inception_score(LOGITS, splits=7) == pytest.approx(expected, rel=1e-9)


def test_inception_score_of_adm_takes_5000_in_order():
    logits = np.concatenate([np.tile(LOGITS[:10], (500, 1)), np.tile(LOGITS[10:14], (50, 1))])
    parts = [score_of(part) for part in (logits[:5000], logits[5000:])]
    assert inception_score(logits, "adm") == pytest.approx(
        (np.mean(parts), np.std(parts)), rel=1e-9
    )


def test_inception_score_has_its_bounds():
    sure, unsure = 1000 * np.eye(10, dtype=np.float32), np.zeros((10, 10), np.float32)
    assert inception_score(sure, splits=1)[0] == pytest.approx(10)
    assert inception_score(unsure, splits=1)[0] == pytest.approx(1)
    assert inception_score(np.tile(sure[:1], (4, 1)), splits=2) == (1, 0)


def test_kernel_distance_is_a_direct_computation():
    random, others = np.random.RandomState(2020), ~np.eye(50, dtype=bool)
    expected = []
    for _ in range(6):
        x, y = (side[random.choice(len(side), 50, replace=False)] for side in (A, B))
        within = [polynomial_kernel(side)[others].mean() for side in (x, y)]
        expected.append(sum(within) - 2 * polynomial_kernel(x, y).mean())
    found = kernel_distance(A, B, subsets=6, subset_size=50)
    assert found == pytest.approx((np.mean(expected), np.std(expected)), rel=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("xp", [np, jnp])
def test_sliced_distance_is_a_direct_computation(monkeypatch, xp, dtype):
    monkeypatch.setattr(points, "module", lambda dtype: xp if dtype == np.float32 else np)
    a, b = A[:250].astype(dtype), B.astype(dtype)
    directions = np.random.default_rng(1).standard_normal((130, 16))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    lines = [np.sort(directions @ side.T.astype(float)) for side in (a, b)]
    expected = 3 * 16 * np.square(lines[0] - lines[1]).mean()
    assert distance_along(directions, a, b) == pytest.approx(expected, rel=1e-6)


def test_sliced_distance_of_unequal_sets():
    assert sliced_distance(A, A) == 0
    # Of a shift by s it is 3 |s|^2 in expectation over directions.
    assert sliced_distance(A, A + 0.5) == pytest.approx(3 * 16 * 0.25, rel=0.1)
    drawn = sliced_distance(A, B)
    assert drawn == sliced_distance(A, B)
    assert drawn == pytest.approx(sliced_distance(A[:250], B), rel=0.3)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: inception_score(LOGITS, "ours"), "rule must be one of torch_fidelity, adm"),
        (lambda: inception_score(LOGITS[:5]), "splits must be from 1 to the 5 images, got 10"),
        (lambda: inception_score(LOGITS, splits=0), "splits must be from 1"),
        (lambda: inception_score(LOGITS * np.nan), "logits must be finite"),
        (lambda: kernel_distance(A, B), r"from 2 to the number of images \(250\), got 1000"),
        (lambda: kernel_distance(A, B * np.nan, 1, 9), "real features must be finite"),
        (lambda: sliced_distance(A, B[:0]), "synthetic features must be of at least one image"),
        (lambda: sliced_distance(A, B, num_directions=0), "num_directions must be at least 1"),
        (lambda: sliced_distance(A * np.inf, B), "synthetic features must be finite"),
    ],
)
def test_wrong_arguments_are_refused(action, message):
    with pytest.raises(InputError, match=message):
        action()
