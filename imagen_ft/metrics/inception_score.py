"""The inception score of a set of images, from a classifier's logits."""

import itertools

import numpy as np
from jaxtyping import Float
from scipy.special import log_softmax

from imagen_ft.metrics.statistics import check_finite
from launch.errors import InputError

RULES = ("torch_fidelity", "adm")
# Images of a part in ADM's evaluator: 10 parts only if there are 50,000 images.
_ADM_SPLIT = 5000


def inception_score(
    logits: Float[np.ndarray, "n c"],
    rule: str = "torch_fidelity",
    splits: int = 10,
    seed: int = 2020,
) -> tuple[float, float]:
    """Mean and population standard deviation over splits (Salimans et al. 2016).

    For Inception-v3, `logits` are those without the bias. Rule 'torch_fidelity' shuffles the images
    by `seed` and makes `splits` parts; 'adm' takes parts of 5000 in the given order, and its score
    is their mean alone. Raises `InputError` for an unknown rule, fewer images than splits, or NaN.
    """
    if rule not in RULES:
        raise InputError(f"rule must be one of {', '.join(RULES)}, got {rule!r}")
    check_finite("logits", logits)
    count = len(logits)
    if not count or not 1 <= splits <= count:
        raise InputError(
            f"splits must be from 1 to the {count} images, got {splits}; use fewer splits"
        )
    if rule == "adm":
        order, borders = np.arange(count), [*range(0, count, _ADM_SPLIT), count]
    else:
        # The legacy generator, so that the parts are those of torch-fidelity.
        order = np.random.RandomState(seed).permutation(count)
        borders = [part * count // splits for part in range(splits + 1)]
    scores = [_score(logits[order[start:stop]]) for start, stop in itertools.pairwise(borders)]
    return float(np.mean(scores)), float(np.std(scores))


def _score(logits: Float[np.ndarray, "n c"]) -> float:
    # Salimans et al. 2016: exp E_x KL(p(y|x) || p(y)), in float64 as torch-fidelity does.
    log_p = log_softmax(logits.astype(np.float64), axis=1)
    p = np.exp(log_p)
    # A class that no image can have contributes 0, not NaN.
    log_mean = np.log(np.maximum(p.mean(axis=0), np.finfo(np.float64).tiny))
    return float(np.exp((p * (log_p - log_mean)).sum(axis=1).mean()))
