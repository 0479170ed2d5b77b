"""Accuracies of each arm's classifiers, and whether they are as good as the reference's."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from scipy import stats

from imagen_ft.economy.plan import REAL, Arm, evaluation_path
from launch.files import read_fields

# Level of each one-sided test: the 90% interval lies within the margin exactly if both reject.
LEVEL = 0.05
Accuracies = Sequence[float] | np.ndarray  # of the seeds


def equivalence(accuracies: Accuracies, reference: Accuracies, margin: float) -> dict[str, float]:
    """Two one-sided t-tests over pairs of seeds (Schuirmann 1987).

    Both sequences hold an accuracy in [0, 1] for the same seeds. Returns `difference`, the mean;
    `low` and `high`, its 90% interval; and `p_equivalent`, small if the true difference is within
    the margin.
    """
    # Paired by seed, which the classifiers of all arms share.
    differences = np.asarray(accuracies) - np.asarray(reference)
    count, mean = len(differences), float(differences.mean())
    error = float(differences.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    # Without spread the mean alone decides; of a single seed nothing is known, NaN.
    if not error > 0.0:
        known = count > 1
        p_value = float(abs(mean) >= margin) if known else math.nan
        return dict(difference=mean, low=mean, high=mean, p_equivalent=p_value)
    # t = (mean -+ margin) / error with n - 1 degrees of freedom; the larger p of both tests counts.
    spread = stats.t(count - 1)
    width = float(spread.ppf(1.0 - LEVEL)) * error
    p_value = max(spread.sf((mean + margin) / error), spread.cdf((mean - margin) / error))
    return dict(difference=mean, low=mean - width, high=mean + width, p_equivalent=float(p_value))


def collect(
    config: ml_collections.ConfigDict, workdir: Path, arms: Sequence[Arm]
) -> dict[str, Any]:
    """Results of all arms, as JSON; the first arm is the reference."""
    found = {name: _accuracies(config, workdir, name) for name in [REAL, *(a.name for a in arms)]}
    reference = found[arms[0].name]
    rows = [
        dict(
            name=arm.name,
            kind=arm.kind,
            evaluations=arm.evaluations,
            by_stage=list(arm.by_stage),
            accuracies=found[arm.name],
            mean=float(np.mean(found[arm.name])),
            # The sample deviation over seeds, 0 for a single one.
            std=float(np.std(found[arm.name], ddof=1)) if len(found[arm.name]) > 1 else 0.0,
            **equivalence(found[arm.name], reference, config.margin),
        )
        for arm in arms
    ]
    return dict(real=found[REAL], margin=config.margin, arms=rows)


def cheapest(result: dict[str, Any]) -> dict[str, Any]:
    """The arm with the fewest evaluations that is as good as the reference; else the reference."""
    reference = result["arms"][0]
    same = [row for row in result["arms"][1:] if row["p_equivalent"] < LEVEL]
    return min(same, key=lambda row: row["evaluations"], default=reference)


def _accuracies(config: ml_collections.ConfigDict, workdir: Path, name: str) -> list[float]:
    path = evaluation_path(config, workdir, name)
    (arm,) = read_fields(path, arms=dict)["arms"].values()
    return [float(value) for value in arm["accuracies"]]
