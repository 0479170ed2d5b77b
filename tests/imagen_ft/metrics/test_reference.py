import pickle

import numpy as np
import pytest

from imagen_ft.metrics import reference
from imagen_ft.metrics.statistics import of_features
from launch.errors import InputError
from launch.files import sha256

RANDOM = np.random.default_rng(0)
POOLED, SPATIAL = (of_features(RANDOM.standard_normal((20, width))) for width in (4, 3))
GOOD = {"mu": POOLED.mean, "sigma": POOLED.covariance}
PMF = {"ref_mu": POOLED.mean, "ref_sigma": POOLED.covariance}
ADM = {**GOOD, "mu_s": SPATIAL.mean, "sigma_s": SPATIAL.covariance}


def assert_same(found, expected, tolerance=0.0):
    for name in ("mean", "covariance"):
        a, b = (getattr(side, name) for side in (found, expected))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize("arrays", [GOOD, PMF, ADM | {"arr_0": np.zeros((2, 4, 4, 3), np.uint8)}])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_published_files_are_read(tmp_path, arrays, dtype):
    path = tmp_path / "reference.npz"
    kept = {
        name: array.astype(dtype) if array.ndim < 3 else array for name, array in arrays.items()
    }
    np.savez(path, **kept)
    found = reference.read(path)
    assert_same(found.pooled, POOLED, 1e-6 if dtype == np.float32 else 0.0)
    assert found.pooled.num_images is None
    assert found.digest == sha256(path)
    assert (found.spatial is None) == ("mu_s" not in arrays)
    if found.spatial:
        assert_same(found.spatial, SPATIAL, 1e-6)


@pytest.mark.parametrize("spatial", [None, SPATIAL])
def test_our_files_are_read(tmp_path, spatial):
    path = tmp_path / "reference.npz"
    reference.write(path, POOLED, spatial)
    found = reference.read(path)
    assert_same(found.pooled, POOLED)
    assert found.pooled.num_images == 20
    assert (found.spatial is None) == (spatial is None)


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("it was unpickled",)


def npz(**arrays):
    return lambda path: np.savez(path, **arrays)


def asymmetric():
    covariance = POOLED.covariance.copy()
    covariance[0, 1] += 1
    return covariance


def cut_short(path):
    np.savez(path, **GOOD)
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_bytes(pickle.dumps(Bomb())), "is a pickle, which could run"),
        (lambda path: path.write_bytes(b"mu"), "is not an npz file"),
        (npz(**GOOD | {"mu": np.array([Bomb()])}), "is damaged or holds pickles"),
        (cut_short, "is damaged or holds pickles"),
        (npz(arr_0=np.zeros((2, 4, 4, 3), np.uint8)), "must hold mu and sigma, got none of them"),
        (npz(mu=POOLED.mean), "must hold mu and sigma, got mu"),
        (npz(**GOOD | {"mu": POOLED.mean * np.nan}), "mu must be finite"),
        (npz(**GOOD | {"sigma": POOLED.covariance * np.inf}), "sigma must be finite"),
        (npz(**GOOD | {"mu": POOLED.mean[:3]}), r"got \[3\] and \[4, 4\]"),
        (npz(**GOOD | {"mu": POOLED.mean[None]}), r"got \[1, 4\] and \[4, 4\]"),
        (npz(**GOOD | {"mu": np.arange(4)}), "mu must be real numbers, got int64"),
        (npz(**GOOD | {"sigma": asymmetric()}), "sigma must be a covariance"),
        (npz(**GOOD | {"sigma": -POOLED.covariance}), "sigma must be a covariance"),
        (npz(**ADM | {"mu_s": SPATIAL.mean[:2]}), "mu_s and sigma_s must have the shapes"),
        (npz(**GOOD, num_images=np.array(1)), "num_images must be a whole number of at least 2"),
    ],
)
def test_wrong_files_are_refused(tmp_path, make, message):
    path = tmp_path / "reference.npz"
    make(path)
    with pytest.raises(InputError, match=message) as refused:
        reference.read(path)
    assert "\n" not in str(refused.value)
