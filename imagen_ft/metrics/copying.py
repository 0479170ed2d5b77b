"""Copies among generated images: how near the nearest real image is."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from imagen_ft.metrics.neighbours import nearest
from imagen_ft.metrics.points import points_of
from launch.errors import InputError

# Carlini et al. 2023: neighbours that a distance is measured by, and their weight.
_NEIGHBOURS, _ALPHA = 50, 0.5


@dataclasses.dataclass(frozen=True)
class Copying:
    """What is known of each generated image.

    Attributes:
        nearest: position of the nearest real image.
        distance: to it, Euclidean, in feature space.
        ratio: the calibrated distance of Carlini et al. 2023: to the nearest real image, over half
            of the mean distance to the nearest 50; 2 where all are equally far, 0 for a copy.
        closer: whether the nearest real image has no other real one as near or nearer: it is closer
            than real images are to each other.
    """

    nearest: Int[np.ndarray, " n"]
    distance: Float64[np.ndarray, " n"]
    ratio: Float64[np.ndarray, " n"]
    closer: Bool[np.ndarray, " n"]

    @property
    def authentic_share(self) -> float:
        """AuthPct of Alaa et al. 2022, in [0, 1]."""
        return float(1 - self.closer.mean())

    def worst(self, count: int) -> Int[np.ndarray, " k"]:
        """Positions of the generated images most like copies, by their ratio."""
        return np.argsort(self.ratio, kind="stable")[:count]


def copying(generated: Float[np.ndarray, "n d"], real: Float[np.ndarray, "m d"]) -> Copying:
    """Compares generated images with those that their model was trained on.

    Args:
        generated: features.
        real: features of the training set.

    Raises:
        InputError: there are fewer than two real images, no generated ones, or NaN features.
    """
    if len(real) < 2:
        raise InputError(f"real images must be at least 2, got {len(real)}; take the training set")
    ours, theirs = points_of(generated, real)
    squares, positions = nearest(ours, theirs, min(_NEIGHBOURS, len(real)))
    touched, inverse = np.unique(positions, return_inverse=True)
    _, others = nearest(theirs[touched], theirs, 1, own=touched)
    # Products leave few digits of a small distance, and those of copies are the smallest.
    distance = _distances(generated, real[positions])
    real_distance = _distances(real[touched], real[others])[inverse]
    mean = np.sqrt(squares.astype(np.float64)).mean(axis=1)
    ratio = np.divide(distance, _ALPHA * mean, out=np.zeros_like(mean), where=mean > 0)
    return Copying(positions, distance, ratio, distance <= real_distance)


def _distances(
    a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "n d"]
) -> Float64[np.ndarray, " n"]:
    differences = a.astype(np.float64) - b
    return np.sqrt(np.einsum("nd,nd->n", differences, differences))
