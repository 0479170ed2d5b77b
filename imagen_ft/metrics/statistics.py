"""Means and covariances of features, streamed in float64 and merged from parts."""

import dataclasses

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float, Float64

from launch.errors import InputError

# Rows that are converted to float64 at a time, to bound the memory.
_ROWS = 4096


@dataclasses.dataclass(frozen=True)
class Statistics:
    """All that a Frechet distance uses of a set of images."""

    mean: Float64[np.ndarray, " d"]
    covariance: Float64[np.ndarray, "d d"]  # unbiased: over n - 1
    num_images: int | None = None  # None where a file does not say

    @property
    def width(self) -> int:
        """Dimensions of the features."""
        return len(self.mean)


class Moments:
    """Running mean and covariance of features, in float64, for any split of the images.

    Chan, Golub & LeVeque 1979: each part keeps the products of deviations from its own mean, so no
    large numbers cancel, and merged parts equal the whole up to the last bits.
    """

    def __init__(self, width: int):
        # `scatter` is the sum over images of the outer products of their deviations from the mean.
        self.num_images = 0
        self.mean = np.zeros(width)
        self.scatter = np.zeros((width, width))

    def add(self, features: Float[np.ndarray, "n d"]) -> None:
        """Adds images; raises `InputError` if a feature is NaN or infinite, or of another width."""
        if features.shape[1] != len(self.mean):
            raise InputError(
                f"features must be {len(self.mean)} wide, as before, got {features.shape[1]}; use "
                "one extractor for the whole set"
            )
        check_finite("features", features)
        for start in range(0, len(features), _ROWS):
            rows = features[start : start + _ROWS].astype(np.float64)
            mean = rows.mean(axis=0)
            rows -= mean
            self._merge(len(rows), mean, rows.T @ rows)

    def merge(self, other: "Moments") -> None:
        """Adds the images of another; raises `InputError` if its features have another width."""
        if len(other.mean) != len(self.mean):
            raise InputError(
                f"features must be {len(self.mean)} wide in all parts, got {len(other.mean)}; use "
                "one extractor for the whole set"
            )
        self._merge(other.num_images, other.mean, other.scatter)

    def _merge(
        self, count: int, mean: Float64[np.ndarray, " d"], scatter: Float64[np.ndarray, "d d"]
    ) -> None:
        if not count:
            return
        total = self.num_images + count
        shift = mean - self.mean
        # Chan, Golub & LeVeque 1979, with outer products in place of squares.
        self.scatter += scatter
        self.scatter += np.outer(shift, shift * (self.num_images * count / total))
        self.mean = self.mean + shift * (count / total)
        self.num_images = total

    def statistics(self) -> Statistics:
        """Statistics of all images so far; raises `InputError` for fewer than two."""
        if self.num_images < 2:
            raise InputError(
                f"the number of images must be at least 2, got {self.num_images}: a single image "
                "has no covariance; check the folder"
            )
        return Statistics(self.mean, self.scatter / (self.num_images - 1), self.num_images)


def of_features(features: Float[np.ndarray, "n d"]) -> Statistics:
    """Statistics of features in memory.

    Raises `InputError` if a feature is NaN or infinite, or if there are fewer than two images.
    """
    moments = Moments(features.shape[1])
    moments.add(features)
    return moments.statistics()


def merge_hosts(moments: Moments) -> Moments:
    """The moments of all processes' images, equal on each; every process must call it."""
    if jax.process_count() == 1:
        return moments
    numbers = np.concatenate([[float(moments.num_images)], moments.mean, moments.scatter.ravel()])
    # JAX would round float64 to float32: send its bits as uint32 instead.
    parts = np.asarray(multihost_utils.process_allgather(numbers.view(np.uint32)))
    width = len(moments.mean)
    merged = Moments(width)
    # [processes, 1 + d + d * d]; merged in the order of processes, so that all get the same bits.
    for part in parts.reshape(len(parts), -1).view(np.float64):
        own = Moments(width)
        own.num_images, own.mean = int(part[0]), part[1 : 1 + width]
        own.scatter = part[1 + width :].reshape(width, width)
        merged.merge(own)
    return merged


def check_finite(name: str, features: np.ndarray) -> None:
    """Raises `InputError`, naming the first image with a NaN or infinite feature."""
    # Float32 sums cannot overflow float64: a finite sum by row proves all finite without a second
    # array in the usual case.
    with np.errstate(over="ignore", invalid="ignore"):
        sums = features.sum(axis=1, dtype=np.float64)
    if np.isfinite(sums).all():
        return
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        raise InputError(
            f"{name} must be finite, got NaN or infinity for image {int(np.argmin(finite))}; "
            "check the extractor's weights and the image"
        )
