"""The Frechet distance between sets of images: FID, sFID, and the same on any other extractor.

It is called FID on the pooled features of Inception-v3 alone, sFID on ADM's spatial ones.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Float64, Int

from imagen_ft.metrics.statistics import Moments, Statistics, check_finite, of_features
from launch.errors import InputError


def frechet_distance(a: Statistics, b: Statistics, allow_few_images: bool = False) -> float:
    """Squared Frechet distance between two Gaussians (Heusel et al. 2017, Eq. 6).

    A set against itself is 0 but for rounding, of either sign: the sum of roots of eigenvalues and
    the traces that cancel it are computed apart, and differ by about 1e-14 of the trace.

    Args:
        a: one set.
        b: the other.
        allow_few_images: whether there may be no more images than dimensions.

    Raises:
        InputError: the features are of different widths, or there are too few images.
    """
    if a.width != b.width:
        raise InputError(
            f"both sets' features must be of one width, got {a.width} and {b.width}; use "
            "statistics of the same extractor"
        )
    if not allow_few_images:
        check_enough(a)
        check_enough(b)
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    return float(np.square(a.mean - b.mean).sum() + traces - 2 * _trace_of_root(a, b))


def check_enough(statistics: Statistics) -> None:
    """Refuses a covariance that has no full rank.

    Raises:
        InputError: it is of no more images than the features have dimensions.
    """
    count, width = statistics.num_images, statistics.width
    if count is not None and count <= width:
        raise InputError(
            f"the number of images must be above {width}, the features' dimensions, got {count}: "
            "the covariance of so few is singular, and the distance says more of their number than "
            "of the images; take more images, or allow_few_images"
        )


def distance_of_features(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> float:
    """The same distance from features, exact and fast also where the images are few.

    With S = A^T A of centred features over (n - 1)^(1/2), the trace of (S_a S_b)^(1/2) is the
    nuclear norm of A B^T, [n, m]: nothing singular, and small where a set is. The expectation falls
    with the number of images: compare at one number only.

    Raises:
        InputError: a feature is NaN or infinite, or a set has fewer than two images.
    """
    if min(len(a), len(b)) > a.shape[1]:
        return frechet_distance(of_features(a), of_features(b))
    centred, means = [], []
    for name, features in (("features", a), ("reference features", b)):
        if len(features) < 2:
            raise InputError(f"{name} must be of at least 2 images, got {len(features)}; take more")
        check_finite(name, features)
        rows = features.astype(np.float64)
        means.append(rows.mean(axis=0))
        centred.append((rows - means[-1]) / np.sqrt(len(rows) - 1))
    shared = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    traces = sum(np.square(rows).sum() for rows in centred)
    return float(np.square(means[0] - means[1]).sum() + traces - 2 * shared)


def relative_distance(
    generated: Statistics, held_out: Statistics, real: Statistics, allow_few_images: bool = False
) -> float:
    """Distance of generated images from real ones, over that of other real images from them.

    1.0 is as good as fresh real images, on any extractor.

    Args:
        generated: the images to measure.
        held_out: as many real images, none of which is in `real`.
        real: what both are compared with.
        allow_few_images: as for `frechet_distance`.

    Raises:
        InputError: as `frechet_distance`; or the numbers of images differ, of which the distance
            depends.
    """
    counts = generated.num_images, held_out.num_images
    if None not in counts and counts[0] != counts[1]:
        raise InputError(
            f"held-out images must be as many as generated ones, got {counts[1]} and {counts[0]}: "
            "the distance falls with their number; take as many of both"
        )
    own = frechet_distance(held_out, real, allow_few_images)
    return _ratio(frechet_distance(generated, real, allow_few_images), own)


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Features of images whose classes are known.

    Attributes:
        features: of each image.
        labels: its class.
    """

    features: Float[np.ndarray, "n d"]
    labels: Int[np.ndarray, " n"]

    def of_class(self, label: int) -> Float[np.ndarray, "n d"]:
        """The features of one class."""
        return self.features[self.labels == label]


def relative_distance_of_classes(
    generated: Labelled, held_out: Labelled, real: Labelled
) -> dict[int, float]:
    """`relative_distance` within each class that all three have two images of, by class.

    Of a class the first images count, as many generated as held-out ones.
    """
    ratios = {}
    for label in np.unique(generated.labels).tolist():
        ours, theirs, reals = (part.of_class(label) for part in (generated, held_out, real))
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
    """The distance that infinitely many images would have: a line in 1 / N, at 0.

    Chong & Forsyth 2020, with the points of Stein et al. 2023: evenly spaced numbers of images from
    a tenth, but at most 5000, to all. Each takes those of the one before and more, of one random
    order, so that all are a single pass.

    Args:
        features: of the generated images, many of them.
        reference: of the real ones.
        num_points: on the line.
        seed: of the order.
        allow_few_images: as for `frechet_distance`.

    Raises:
        InputError: as `frechet_distance`, for the point with the fewest images; or there are not
            enough for the points.
    """
    total = len(features)
    counts = np.linspace(min(5000, max(total // 10, 2)), total, num_points).astype(int)
    if num_points < 2 or (np.diff(counts) < 1).any():
        raise InputError(
            f"num_points must be at least 2 and far fewer than images, got {num_points} of {total} "
            "images; take more images"
        )
    order = np.random.default_rng(seed).permutation(total)
    moments = Moments(features.shape[1])
    distances = []
    for start, stop in zip([0, *counts[:-1]], counts, strict=True):
        moments.add(features[order[start:stop]])
        distances.append(frechet_distance(moments.statistics(), reference, allow_few_images))
    return float(np.polyfit(1 / counts, distances, 1)[1])


def _ratio(distance: float, own: float) -> float:
    if own <= 0:
        raise InputError(
            "held-out images must differ from the real ones that both are compared with, got a "
            "distance of 0; take images that are not among those"
        )
    return distance / own


def _trace_of_root(a: Statistics, b: Statistics) -> float:
    """Of (S_a S_b)^(1/2): with S_a = R R^T, R^T S_b R has its eigenvalues and is symmetric."""
    # The root of the lower rank, so that fewest eigenvalues are rounding.
    few, many = sorted((a, b), key=lambda side: side.num_images or np.inf)
    root = _root(few.covariance)
    eigenvalues = np.linalg.eigvalsh(root.T @ many.covariance @ root)
    return float(np.sqrt(eigenvalues.clip(min=0)).sum())


def _root(covariance: Float64[np.ndarray, "d d"]) -> Float64[np.ndarray, "d r"]:
    try:
        return np.linalg.cholesky(covariance)  # A tenth of the time of eigenvectors.
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(covariance)
    largest = len(values) * np.finfo(np.float64).eps * values[-1]
    above = values > largest
    return vectors[:, above] * np.sqrt(values[above])
