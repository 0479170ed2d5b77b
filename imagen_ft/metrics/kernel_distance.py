"""The kernel inception distance."""

import numpy as np
from jaxtyping import Float, Float64

from imagen_ft.metrics.statistics import check_finite
from launch.errors import InputError


def kernel_distance(
    synthetic: Float[np.ndarray, "n d"],
    real: Float[np.ndarray, "m d"],
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
) -> tuple[float, float]:
    """KID: mean and population standard deviation over subsets (Binkowski et al. 2018).

    The unbiased squared MMD, so it may be slightly negative. The subsets are those of
    torch-fidelity for the same seed. Raises `InputError` if a set has fewer images than a subset,
    or NaN features.
    """
    fewest = min(len(synthetic), len(real))
    if not 2 <= subset_size <= fewest or subsets < 1:
        raise InputError(
            f"subset_size must be from 2 to the number of images ({fewest}), got {subset_size} "
            f"(for {subsets} subsets); use smaller subsets"
        )
    check_finite("synthetic features", synthetic)
    check_finite("real features", real)
    # torch-fidelity draws from the legacy generator, one set after the other: keep the order.
    random = np.random.RandomState(seed)
    distances = []
    for _ in range(subsets):
        x, y = (
            features[random.choice(len(features), subset_size, replace=False)].astype(np.float64)
            for features in (synthetic, real)
        )
        distances.append(_squared_mmd(x, y))
    return float(np.mean(distances)), float(np.std(distances))


def _squared_mmd(x: Float64[np.ndarray, "n d"], y: Float64[np.ndarray, "n d"]) -> float:
    # Gretton et al. 2012, Lemma 6: without the diagonals within a set, with all pairs across.
    count, width = x.shape
    within = 0.0
    for side in (x, y):
        own = np.einsum("nd,nd->n", side, side) / width + 1
        within += _sum_of_kernel(side, side) - (own**3).sum()
    return float(within / (count * (count - 1)) - 2 * _sum_of_kernel(x, y) / count**2)


def _sum_of_kernel(x: Float64[np.ndarray, "n d"], y: Float64[np.ndarray, "m d"]) -> float:
    # Binkowski et al. 2018: k(x, y) = (x^T y / d + 1)^3, summed over all pairs.
    base = x @ y.T  # [n, m]; where x is y, NumPy computes only half of it
    base /= x.shape[1]
    base += 1
    return float(np.vdot(base * base, base))
