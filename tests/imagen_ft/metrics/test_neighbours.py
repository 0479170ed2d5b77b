import jax
import jax.numpy as jnp
import numpy as np
import pytest
from prdc import compute_prdc
from scipy.spatial import distance
from sklearn.neighbors import NearestNeighbors

from imagen_ft.metrics import neighbours, points
from imagen_ft.metrics.copying import copying
from imagen_ft.metrics.neighbours import CONVENTIONS, Convention, neighbourhoods
from launch.errors import InputError

RANDOM = np.random.default_rng(0)
REAL = 5 + RANDOM.standard_normal((310, 6))
FAKE = 5.6 + 0.9 * RANDOM.standard_normal((270, 6))


@pytest.fixture(params=[np.float32, np.float64])
def computation(request, monkeypatch):
    """Features of its dtype, in blocks that do not divide the sets."""
    monkeypatch.setattr(neighbours, "_ROWS", 64)
    monkeypatch.setattr(neighbours, "_COLUMNS", 100)
    return lambda features: features.astype(request.param)


@pytest.mark.parametrize("k", [1, 5])
def test_neighbourhoods_are_prdc_s(computation, capsys, k):
    real, fake = computation(REAL), computation(FAKE)
    found = neighbourhoods(fake, real, Convention(k, "<"))
    assert vars(found) == pytest.approx(compute_prdc(real, fake, k), rel=1e-9)


def test_neighbourhoods_of_adm_are_a_direct_computation(computation):
    real, fake = computation(REAL), computation(FAKE)

    def share_within(rows, balls):
        radii = np.sort(distance.cdist(balls, balls), axis=1)[:, 3]  # the first is itself
        return (distance.cdist(rows, balls) <= radii).any(axis=1).mean()

    found = neighbourhoods(fake, real, CONVENTIONS["adm"])
    assert 0 < found.precision < 1 and 0 < found.recall < 1
    assert found.precision == pytest.approx(share_within(fake, real), rel=1e-9)
    assert found.recall == pytest.approx(share_within(real, fake), rel=1e-9)


def test_borders_belong_to_neighbourhoods_or_not(computation):
    # On a line with steps of 1 every image has its neighbour on its border.
    real = computation(np.arange(0, 40, 4.0)[:, None])
    fake = computation(np.concatenate([np.arange(4, 44, 4.0), [1000.0]])[:, None])
    fake[9] = 100
    open_, closed = (neighbourhoods(fake, real, Convention(1, sign)) for sign in ("<", "<="))
    assert (open_.density, closed.density) == pytest.approx((9 / 11, 26 / 11))
    assert closed.coverage == 1 > open_.coverage == pytest.approx(0.9)


def test_copies_are_in_neighbourhoods_of_no_size(computation):
    # Every real image is there thrice: the second nearest is at distance 0.
    real = computation(np.repeat(REAL[:20], 3, axis=0))
    found = neighbourhoods(real[::3], real, Convention(2, "<="))
    assert (found.precision, found.coverage, found.density) == (1, 1, 1.5)


def test_nearest_real_images(computation):
    real, fake = computation(REAL), computation(FAKE)
    fake[17] = real[205]
    fake[40] = real[100] + 1e-3
    found = copying(fake, real)
    search = NearestNeighbors().fit(real.astype(float))
    distances, positions = search.kneighbors(fake.astype(float), 50)
    np.testing.assert_array_equal(found.nearest, positions[:, 0])
    np.testing.assert_allclose(found.distance, distances[:, 0], rtol=1e-9, atol=1e-12)
    expected = distances[:, 0] / (0.5 * distances.mean(axis=1))
    np.testing.assert_allclose(found.ratio, expected, rtol=1e-5, atol=1e-9)
    own = search.kneighbors(real.astype(float), 2)[0][:, 1]
    authentic = own[positions[:, 0]] < distances[:, 0]
    np.testing.assert_array_equal(~found.closer, authentic)
    assert found.authentic_share == pytest.approx(authentic.mean())
    assert found.worst(2).tolist() == [17, 40]
    assert found.distance[17] == 0


def test_a_set_of_copies(computation):
    real = computation(REAL)
    assert copying(real[:50], real).authentic_share == 0
    same = computation(np.ones((4, 3)))
    found = copying(same, same)
    assert found.ratio.tolist() == [0, 0, 0, 0]
    assert found.closer.all()


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (
            lambda a, b: neighbourhoods(a[:3], b),
            "k must be at least 1 .* got 3 for 3 synthetic and 310",
        ),
        (lambda a, b: neighbourhoods(a, b, Convention(0, "<")), "k must be at least 1"),
        (lambda a, b: neighbourhoods(a, b, Convention(3, ">")), "must be '<' or '<=', got '>'"),
        (lambda a, b: neighbourhoods(a * np.inf, b), "synthetic features must be finite"),
        (lambda a, b: copying(a, b[:1]), "real images must be at least 2, got 1"),
        (lambda a, b: copying(a[:0], b), "synthetic features must be of at least one image"),
    ],
)
def test_wrong_arguments_are_refused(computation, action, message):
    with pytest.raises(InputError, match=message):
        action(computation(FAKE), computation(REAL))


@pytest.mark.slow
def test_an_accelerator_finds_the_same(monkeypatch):
    real, fake = (side[:192].astype(np.float32) for side in (REAL, FAKE))
    fake[:9] = real[100:109]
    monkeypatch.setattr(neighbours, "_ROWS", 96)
    monkeypatch.setattr(neighbours, "_COLUMNS", 96)
    expected = neighbourhoods(fake, real), copying(fake, real)
    monkeypatch.setattr(points, "module", lambda dtype: jnp)
    assert isinstance(points.points_of(fake, real)[0].rows, jax.Array)
    assert neighbourhoods(fake, real) == expected[0]
    found = copying(fake, real)
    np.testing.assert_array_equal(found.nearest, expected[1].nearest)
    np.testing.assert_allclose(found.ratio, expected[1].ratio, rtol=1e-5)
