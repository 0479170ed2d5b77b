"""Whether generated images show their classes, and how much they vary within (Fan et al. 2024)."""

import numpy as np
from jaxtyping import Float, Float64, Int

from imagen_ft.metrics.statistics import check_finite
from launch.errors import InputError


def recognizability(
    predicted: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"]
) -> tuple[float, dict[int, float]]:
    """F1 of a classifier of real images on generated ones (Fan et al. 2024, section 3.2).

    An image of another class that is taken for one counts against that one, too: the numbers hold
    for as many images of each class (there: 50).

    Args:
        predicted: the classifier's class of each image.
        labels: the class that each was generated for.

    Returns:
        The mean over the classes that were generated, and the F1 of each, all in [0, 1].

    Raises:
        InputError: there are no images.
    """
    _check_any(labels)
    size = 1 + max(int(predicted.max()), int(labels.max()))
    right = np.bincount(labels[predicted == labels], minlength=size)
    sums = np.bincount(labels, minlength=size) + np.bincount(predicted, minlength=size)
    scores = {label: float(2 * right[label] / sums[label]) for label in np.unique(labels).tolist()}
    return float(np.mean(list(scores.values()))), scores


def diversity(
    features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"]
) -> tuple[float, dict[int, float]]:
    """Standard deviation of features within a class (Fan et al. 2024, section 3.2).

    The paper does not say how dimensions are put together: here it is the mean of their standard
    deviations, so compare with that of real images rather than with the paper's numbers.

    Args:
        features: of generated images.
        labels: the class that each was generated for.

    Returns:
        The mean over classes of at least two images, and the value of each.

    Raises:
        InputError: NaN features, or no class has two images.
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
            "every class must have at least 2 images for its diversity, got one of each; take more"
        )
    return float(np.mean(list(deviations.values()))), deviations


def _check_any(labels: Int[np.ndarray, " n"]) -> None:
    if not len(labels):
        raise InputError("there must be at least one image, got none; check the folder")
