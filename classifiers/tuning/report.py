"""What shots of real images reach with and without synthetic ones, as a table and a figure."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from classifiers.evaluation.statistics import compare
from launch.runtime.reports import plots
from launch.runtime.reports.plots import BOTH, REAL
from launch.runtime.reports.tables import p_text, percent, points, text_table

# An arm with synthetic images, and the one without of as many shots.
_PAIRS = {"real+synthetic": "real", "synthetic": "zero_shot"}


def result(arms: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The arms as JSON takes them, from each seed's accuracy, top5, loss and per_class.

    Adds `mean` and `std` over seeds, and `difference` and `p_value` (paired t-test over seeds)
    against the arm of as many shots without synthetic images; both are None for that arm itself.
    """
    results = {}
    for name, seeds in arms.items():
        kind, _, shots = name.partition("@")
        accuracies = [seed["accuracy"] for seed in seeds]
        without = arms.get(f"{_PAIRS[kind]}@{shots}") if kind in _PAIRS else None
        baseline = None if without is None else [seed["accuracy"] for seed in without]
        classes = zip(*(seed["per_class"] for seed in seeds), strict=True)  # [classes][seeds]
        summary = compare(accuracies, baseline)
        gain = None if baseline is None else summary["mean"] - float(np.mean(baseline))
        results[name] = {
            "shots": int(shots),
            "accuracies": accuracies,
            "top5": [seed["top5"] for seed in seeds],
            "loss": [seed["loss"] for seed in seeds],
            # None: no test images.
            "per_class": [None if x[0] is None else float(np.mean(x)) for x in classes],
            **summary,
            "difference": gain,
        }
    return results


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A row per arm."""
    header = ["arm", "shots", "top-1 (%)", "top-5 (%)", "loss", "against without", "p"]
    rows = [
        [
            name.partition("@")[0],
            str(arm["shots"]),
            percent(arm["mean"], arm["std"]),
            percent(np.mean(arm["top5"])),
            f"{np.mean(arm['loss']):.3f}",
            "" if arm["difference"] is None else points(arm["difference"]),
            p_text(arm["p_value"]),
        ]
        for name, arm in results.items()
    ]
    return text_table(header, rows, rule=True)


def figure(results: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Accuracy against shots, with and without synthetic images: He et al. 2023, figure 1."""
    drawing = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = drawing.subplots()
    kinds = (
        (("zero_shot", "real"), "real only", REAL),
        (("synthetic", "real+synthetic"), "real + synthetic", BOTH),
    )
    for names, label, color in kinds:
        curve = [arm for name, arm in results.items() if name.partition("@")[0] in names]
        if curve:
            curve.sort(key=lambda arm: arm["shots"])
            x, mean, std = ([arm[key] for arm in curve] for key in ("shots", "mean", "std"))
            plots.mean_and_std(axes, x, mean, std, label, color)
    axes.set(xlabel="real images per class", ylabel="top-1 accuracy (%)")
    axes.grid(alpha=0.25)
    axes.legend()
    return drawing
