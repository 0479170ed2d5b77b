"""What the accuracies of several seeds say."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

Accuracies = Sequence[float] | np.ndarray  # of the seeds


def compare(accuracies: Accuracies, baseline: Accuracies | None) -> dict[str, Any]:
    """Mean, standard deviation over seeds, and the paired t-test's p-value against a baseline.

    The p-value is None without a baseline, for the baseline itself, and where all differences are
    the same (which has no t-test).
    """
    std = float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else 0.0
    summary = {"mean": float(np.mean(accuracies)), "std": std}
    p_value = None
    if baseline is not None and len(baseline) == len(accuracies):
        differences = np.asarray(accuracies) - np.asarray(baseline)
        # One image more or less is a larger difference than rounding.
        if np.ptp(differences) > 1e-9:
            p_value = float(stats.ttest_1samp(differences, 0.0).pvalue)
    return {**summary, "p_value": p_value}
