"""Whether synthetic images show their classes, and how much they vary within (Fan et al. 2024)."""

import numpy as np
from jaxtyping import Float, Float64, Int

from imagen_ft.metrics.statistics import check_finite
from launch.errors import InputError


def recognizability(
    predicted: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"]
) -> tuple[float, dict[int, float]]:
    """F1 of a classifier of real images on synthetic ones: the mean over classes, and each class's.

    Fan et al. 2024, section 3.2; all in [0, 1]. An image taken for a wrong class also counts
    against that class, so the numbers hold for balanced sets only (the paper draws 50 images a
    class). Raises `InputError` if there are no images.
    """
    _check_any(labels)
    # F1 = 2 TP / (2 TP + FP + FN); the denominator is images of the class plus images taken for it.
    size = 1 + max(int(predicted.max()), int(labels.max()))
    right = np.bincount(labels[predicted == labels], minlength=size)
    sums = np.bincount(labels, minlength=size) + np.bincount(predicted, minlength=size)
    # The mean is over classes that have images: others would count as 0.
    scores = {label: float(2 * right[label] / sums[label]) for label in np.unique(labels).tolist()}
    return float(np.mean(list(scores.values()))), scores


def diversity(
    features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"]
) -> tuple[float, dict[int, float]]:
    """Standard deviation of features within a class: the mean over classes, and each class's value.

    Fan et al. 2024, section 3.2. The paper does not say how to combine the dimensions; here it is
    the mean of their standard deviations, so compare with real images, not with the paper's
    numbers. Classes with a single image are left out. Raises `InputError` on NaN features, or if no
    class has two images.
    """
    _check_any(labels)
    check_finite("features", features)
    deviations = {}
    for label in np.unique(labels).tolist():
        rows: Float64[np.ndarray, "k d"] = features[labels == label].astype(np.float64)
        if len(rows) > 1:
            deviations[label] = float(rows.std(axis=0, ddof=1).mean())
    if not deviations:
        raise InputError(
            "diversity needs at least 2 images of a class, got one of each; use more images"
        )
    return float(np.mean(list(deviations.values()))), deviations


def _check_any(labels: Int[np.ndarray, " n"]) -> None:
    if not len(labels):
        raise InputError("there must be at least one image, got none; check the folder")
