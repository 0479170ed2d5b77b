"""Statistics of the accuracies of several seeds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

Accuracies = Sequence[float] | np.ndarray  # of the seeds


def compare(accuracies: Accuracies, baseline: Accuracies | None) -> dict[str, Any]:
    """Mean, standard deviation over seeds, and the p-value of the paired t-test with a baseline.

    The p-value is None without a baseline, for the baseline itself, for seeds that do not pair up,
    and where all differences are the same, for which there is no t-test.
    """
    std = float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else 0.0  # unbiased
    summary = {"mean": float(np.mean(accuracies)), "std": std}
    p_value = None
    if baseline is not None and len(baseline) == len(accuracies):
        # Seed n of both starts from the same weights, so seeds are pairs.
        differences = np.asarray(accuracies) - np.asarray(baseline)
        # Rounding is far below the difference that one image makes.
        if np.ptp(differences) > 1e-9:
            p_value = float(stats.ttest_1samp(differences, 0.0).pvalue)
    return {**summary, "p_value": p_value}
