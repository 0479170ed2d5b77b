"""Copies among synthetic images: how near the nearest real image is."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from imagen_ft.metrics.neighbours import nearest
from imagen_ft.metrics.points import points_of
from launch.errors import InputError

# Carlini et al. 2023: a distance is measured relative to the mean distance to the 50 nearest
# images, times 0.5.
_NEIGHBOURS, _ALPHA = 50, 0.5


@dataclasses.dataclass(frozen=True)
class Copying:
    """How close each synthetic image is to the real ones."""

    # Position of the nearest real image, and the Euclidean distance to it in feature space.
    nearest: Int[np.ndarray, " n"]
    distance: Float64[np.ndarray, " n"]
    # Carlini et al. 2023: `distance` over half of the mean distance to the nearest 50 real images.
    # 2 where all are equally far, 0 for an exact copy.
    ratio: Float64[np.ndarray, " n"]
    # Whether the synthetic image is at least as near to that real image as any other real image is.
    closer: Bool[np.ndarray, " n"]

    @property
    def authentic_share(self) -> float:
        """AuthPct of Alaa et al. 2022, in [0, 1]: the share of images that are not `closer`."""
        return float(1 - self.closer.mean())

    def worst(self, count: int) -> Int[np.ndarray, " k"]:
        """Positions of the images most like copies, by their ratio."""
        return np.argsort(self.ratio, kind="stable")[:count]


def copying(synthetic: Float[np.ndarray, "n d"], real: Float[np.ndarray, "m d"]) -> Copying:
    """Compares synthetic images with the real ones that their model was trained on.

    Raises `InputError` for fewer than two real images, no synthetic ones, or NaN features.
    """
    if len(real) < 2:
        raise InputError(f"real images must be at least 2, got {len(real)}; use the training set")
    # 1. The nearest real images of each synthetic one.
    ours, theirs = points_of(synthetic, real)
    squares, positions = nearest(ours, theirs, min(_NEIGHBOURS, len(real)))
    # 2. How near those real images are to each other; each is looked up once.
    touched, inverse = np.unique(positions, return_inverse=True)
    _, others = nearest(theirs[touched], theirs, 1, own=touched)
    # 3. Both distances again, from differences: the expansion |a|^2 - 2ab + |b|^2 loses the digits
    # of small distances, and copies have the smallest.
    distance = _distances(synthetic, real[positions])
    real_distance = _distances(real[touched], real[others])[inverse]
    # 4. The calibrated ratio; 0 where all 50 neighbours coincide with the image.
    mean = np.sqrt(squares.astype(np.float64)).mean(axis=1)
    ratio = np.divide(distance, _ALPHA * mean, out=np.zeros_like(mean), where=mean > 0)
    return Copying(positions, distance, ratio, distance <= real_distance)


def _distances(
    a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "n d"]
) -> Float64[np.ndarray, " n"]:
    differences = a.astype(np.float64) - b  # [n, d]
    return np.sqrt(np.einsum("nd,nd->n", differences, differences))
