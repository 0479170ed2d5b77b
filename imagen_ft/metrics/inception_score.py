"""The inception score of a set of images, from a classifier's logits."""

import itertools

import numpy as np
from jaxtyping import Float
from scipy.special import log_softmax

from imagen_ft.metrics.statistics import check_finite
from launch.errors import InputError

RULES = ("torch_fidelity", "adm")
_ADM_SPLIT = 5000


def inception_score(
    logits: Float[np.ndarray, "n c"],
    rule: str = "torch_fidelity",
    splits: int = 10,
    seed: int = 2020,
) -> tuple[float, float]:
    """Mean and population standard deviation over splits (Salimans et al. 2016).

    Args:
        logits: of each image, for Inception-v3 those without the bias.
        rule: 'torch_fidelity' shuffles the images and makes `splits` parts; 'adm' takes parts of
            5000 in the order of the images, and their mean alone is its score.
        splits: number of parts, for 'torch_fidelity'.
        seed: of the shuffle, for 'torch_fidelity'.

    Raises:
        InputError: an unknown rule, fewer images than splits, or NaN.
    """
    if rule not in RULES:
        raise InputError(f"rule must be one of {', '.join(RULES)}, got {rule!r}; name one of them")
    check_finite("logits", logits)
    count = len(logits)
    if not count or not 1 <= splits <= count:
        raise InputError(f"splits must be from 1 to the {count} images, got {splits}; take fewer")
    if rule == "adm":
        order, borders = np.arange(count), [*range(0, count, _ADM_SPLIT), count]
    else:
        order = np.random.RandomState(seed).permutation(count)
        borders = [part * count // splits for part in range(splits + 1)]
    scores = [_score(logits[order[start:stop]]) for start, stop in itertools.pairwise(borders)]
    return float(np.mean(scores)), float(np.std(scores))


def _score(logits: Float[np.ndarray, "n c"]) -> float:
    log_p = log_softmax(logits.astype(np.float64), axis=1)
    p = np.exp(log_p)
    # Where no image can be of a class, its term is 0, not NaN.
    log_mean = np.log(np.maximum(p.mean(axis=0), np.finfo(np.float64).tiny))
    return float(np.exp((p * (log_p - log_mean)).sum(axis=1).mean()))
