"""The Frechet distance between sets of images: FID, sFID, and the same on any other extractor.

The name FID is only for the pooled features of Inception-v3, sFID only for ADM's spatial ones.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Float64, Int

from imagen_ft.metrics.statistics import Moments, Statistics, check_finite, of_features
from launch.errors import InputError


def frechet_distance(a: Statistics, b: Statistics, allow_few_images: bool = False) -> float:
    """Squared Frechet distance between two Gaussians (Heusel et al. 2017, Eq. 6).

    A set against itself gives 0 up to rounding of either sign, about 1e-14 of the trace. Raises
    `InputError` if the widths of the features differ, or, unless `allow_few_images`, if a set has
    no more images than dimensions.
    """
    if a.width != b.width:
        raise InputError(
            f"both sets' features must have the same width, got {a.width} and {b.width}; compute "
            "both with the same extractor"
        )
    if not allow_few_images:
        check_enough(a)
        check_enough(b)
    # Heusel et al. 2017, Eq. 6: |m_a - m_b|^2 + Tr(S_a + S_b - 2 (S_a S_b)^(1/2)).
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    return float(np.square(a.mean - b.mean).sum() + traces - 2 * _trace_of_root(a, b))


def check_enough(statistics: Statistics) -> None:
    """Raises `InputError` for no more images than dimensions: their covariance is singular."""
    count, width = statistics.num_images, statistics.width
    if count is not None and count <= width:
        raise InputError(
            f"the number of images must be above {width}, the features' dimensions, got {count}: "
            "with fewer the covariance is singular, and the distance depends more on their number "
            "than on the images; use more images, or set allow_few_images=True"
        )


def distance_of_features(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> float:
    """The same distance from features, exact and fast also for few images.

    It falls with the number of images, so compare at one number only. Raises `InputError` if a
    feature is NaN or infinite, or if a set has fewer than two images.
    """
    # With more images than dimensions, [d, d] covariances are the smaller problem.
    if min(len(a), len(b)) > a.shape[1]:
        return frechet_distance(of_features(a), of_features(b))
    # Let A [n, d] be the centred features over sqrt(n - 1), so that S_a = A^T A, and B the same of
    # the other set.
    centred, means = [], []
    for name, features in (("features", a), ("reference features", b)):
        if len(features) < 2:
            raise InputError(
                f"{name} must be of at least 2 images, got {len(features)}; use more images"
            )
        check_finite(name, features)
        rows = features.astype(np.float64)
        means.append(rows.mean(axis=0))
        centred.append((rows - means[-1]) / np.sqrt(len(rows) - 1))
    # Tr (S_a S_b)^(1/2) is the nuclear norm of A B^T, [n, m]: small, and nothing in it is singular.
    shared = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    # Tr S_a is the sum of squares of A.
    traces = sum(np.square(rows).sum() for rows in centred)
    return float(np.square(means[0] - means[1]).sum() + traces - 2 * shared)


def relative_distance(
    synthetic: Statistics, held_out: Statistics, real: Statistics, allow_few_images: bool = False
) -> float:
    """Distance of synthetic images from real ones, over that of held-out real images from them.

    1.0 means as good as fresh real images, whatever the extractor. No held-out image may be in
    `real`. Raises `InputError` as `frechet_distance`, or if the numbers of synthetic and held-out
    images differ.
    """
    # The distance falls with the number of images, so the ratio needs equal numbers.
    counts = synthetic.num_images, held_out.num_images
    if None not in counts and counts[0] != counts[1]:
        raise InputError(
            f"the numbers of held-out and synthetic images must be equal, got {counts[1]} and "
            f"{counts[0]}: the distance falls with their number; use the same number of both"
        )
    own = frechet_distance(held_out, real, allow_few_images)
    return _ratio(frechet_distance(synthetic, real, allow_few_images), own)


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Features and class labels of the same images."""

    features: Float[np.ndarray, "n d"]
    labels: Int[np.ndarray, " n"]

    def of_class(self, label: int) -> Float[np.ndarray, "n d"]:
        """The features of one class."""
        return self.features[self.labels == label]


def relative_distance_of_classes(
    synthetic: Labelled, held_out: Labelled, real: Labelled
) -> dict[int, float]:
    """`relative_distance` by class, for classes with at least two images in all three sets.

    Of each class, equally many synthetic and held-out images are compared: the first ones.
    """
    ratios = {}
    for label in np.unique(synthetic.labels).tolist():
        ours, theirs, reals = (part.of_class(label) for part in (synthetic, held_out, real))
        count = min(len(ours), len(theirs))
        if min(count, len(reals)) >= 2:
            own = distance_of_features(theirs[:count], reals)
            ratios[label] = _ratio(distance_of_features(ours[:count], reals), own)
    return ratios


def distance_at_infinity(
    features: Float[np.ndarray, "n d"],
    reference: Statistics,
    num_points: int = 15,
    seed: int = 0,
    allow_few_images: bool = False,
) -> float:
    """The distance that infinitely many images would have (Chong & Forsyth 2020).

    The smallest subset, a tenth of the images but at most 5000, must be enough for
    `frechet_distance`. Raises `InputError` if it is not, or if there are too few images for
    `num_points` subsets.
    """
    # 1. Numbers of images, evenly spaced; of 50,000 images Stein et al. 2023 take 15, from 5000.
    total = len(features)
    counts = np.linspace(min(5000, max(total // 10, 2)), total, num_points).astype(int)
    if num_points < 2 or (np.diff(counts) < 1).any():
        raise InputError(
            f"num_points must be at least 2 and far below the number of images, got {num_points} "
            f"for {total} images; use more images"
        )
    # 2. Each subset extends the one before, in one random order: a single pass gives all distances.
    order = np.random.default_rng(seed).permutation(total)
    moments = Moments(features.shape[1])
    distances = []
    for start, stop in zip([0, *counts[:-1]], counts, strict=True):
        moments.add(features[order[start:stop]])
        distances.append(frechet_distance(moments.statistics(), reference, allow_few_images))
    # 3. The bias is linear in 1 / N to first order: fit a line, and read it at 1 / N = 0.
    return float(np.polyfit(1 / counts, distances, 1)[1])


def _ratio(distance: float, own: float) -> float:
    if own <= 0:
        raise InputError(
            "held-out images must differ from the real images of the comparison, got a distance "
            "of 0; use images that are not among those"
        )
    return distance / own


def _trace_of_root(a: Statistics, b: Statistics) -> float:
    # Tr (S_a S_b)^(1/2): with S_a = R R^T, the symmetric R^T S_b R has the eigenvalues of S_a S_b.
    # Take the root of the covariance of lower rank, so that fewer of them are mere rounding.
    few, many = sorted((a, b), key=lambda side: side.num_images or np.inf)
    root = _root(few.covariance)  # [d, r]
    eigenvalues = np.linalg.eigvalsh(root.T @ many.covariance @ root)
    return float(np.sqrt(eigenvalues.clip(min=0)).sum())


def _root(covariance: Float64[np.ndarray, "d d"]) -> Float64[np.ndarray, "d r"]:
    try:
        return np.linalg.cholesky(covariance)  # ten times faster than eigenvectors
    except np.linalg.LinAlgError:
        # Singular, or negative by rounding: keep only the eigenvalues above rounding.
        values, vectors = np.linalg.eigh(covariance)
    largest = len(values) * np.finfo(np.float64).eps * values[-1]
    above = values > largest
    return vectors[:, above] * np.sqrt(values[above])
