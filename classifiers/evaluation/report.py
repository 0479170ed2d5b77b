"""Results of an evaluation as tables for a terminal, and as a figure."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from classifiers.evaluation.shot_groups import GROUPS
from launch.runtime.reports.tables import percent, text_table

Result = Mapping[str, Any]
_COLUMNS = 3
# With more bars than this, numbers on them would overlap.
_MOST_NUMBERS = 8


def in_order(arms: Iterable[str]) -> list[str]:
    """Names sorted by the numbers in them: 1x, 2x, 10x."""
    # split() alternates text and digits, so odd parts are numbers in every name.
    parts = {arm: re.split(r"(\d+)", arm) for arm in arms}
    return sorted(parts, key=lambda arm: [int(x) if i % 2 else x for i, x in enumerate(parts[arm])])


def table(result: Result) -> str:
    """One set's arms as text: means and standard deviations over seeds."""
    arms = result["arms"]
    first = next(iter(arms.values()))
    shots = [group for group in GROUPS if group in first]
    # Columns exist where the results have them: shot groups, attacks, p-values.
    header = ["arm", "top-1 (%)", "top-5 (%)", "loss", "ECE (%)"]
    header += [f"{group} (%)" for group in shots]
    header += [f"{name} (%)" for name in first["attacks"]]
    header += ["seeds", *[f"p against {result['baseline']}"] * bool(result["baseline"])]
    rows = []
    for name in in_order(arms):
        arm = arms[name]
        row = [name, percent(arm["mean"], arm["std"]), _percent(np.mean(arm["top5"]))]
        row += [f"{np.mean(arm['loss']):.3f}", _percent(np.mean(arm["calibration_error"]))]
        row += [_percent(arm[group]) for group in shots]
        row += [percent(attack["mean"], attack["std"]) for attack in arm["attacks"].values()]
        p_value = "" if arm["p_value"] is None else f"{arm['p_value']:.2g}"
        rows.append([*row, str(len(arm["accuracies"])), *[p_value] * bool(result["baseline"])])
    classes = len(result["class_names"])
    title = f"{result['name']}: {result['num_images']:,} images, {classes:,} classes"
    return f"{title}\n{text_table(header, rows)}"


def overview(results: Mapping[str, Result]) -> str:
    """Mean top-1 of every arm on every set, as text."""
    arms = next(iter(results.values()))["arms"]
    rows = [
        [a, *(_percent(r["arms"][a]["mean"]) for r in results.values())] for a in in_order(arms)
    ]
    return text_table(["top-1 (%)", *results], rows)


def picture(results: Mapping[str, Result]) -> Figure:
    """Top-1 of the arms on all sets, and one reliability diagram per set."""
    panels = 1 + len(results)
    columns = min(_COLUMNS, panels)
    lines = -(-panels // columns)
    figure = Figure(figsize=(4.6 * columns, 4.2 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    _draw_accuracy(axes[0], results)
    for axis, result in zip(axes[1:], results.values(), strict=False):
        _draw_reliability(axis, result)
    for axis in axes[panels:]:  # the last row may be half empty
        axis.axis("off")
    return figure


def _draw_accuracy(axes: Axes, results: Mapping[str, Result]) -> None:
    arms = in_order(next(iter(results.values()))["arms"])
    positions, width = np.arange(len(results)), 0.8 / len(arms)
    for k, arm in enumerate(arms):
        set_results = [result["arms"][arm] for result in results.values()]
        mean, std = ([100 * result[key] for result in set_results] for key in ("mean", "std"))
        shift = (k - (len(arms) - 1) / 2) * width  # bars of a set side by side, centred on its tick
        error = std if any(std) else None
        bars = axes.bar(positions + shift, mean, width, yerr=error, capsize=2, label=arm)
        if len(arms) * len(results) <= _MOST_NUMBERS:
            axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
    axes.set_xticks(positions, list(results), rotation=20 if len(results) > 3 else 0)
    axes.set(ylabel="top-1 (%)", ylim=(0, 105), title="accuracy")
    _add_legend(axes)


def _draw_reliability(axes: Axes, result: Result) -> None:
    """Guo et al. 2017, figure 1: accuracy against confidence, in bins, over all seeds."""
    axes.plot([0, 1], [0, 1], color="gray", lw=1, ls="--")  # perfect calibration
    for name in in_order(result["arms"]):
        arm = result["arms"][name]
        bins = {key: np.array(values) for key, values in arm["calibration"].items()}
        filled = bins["count"] > 0  # an empty bin has no point
        x, y = (bins[key][filled] / bins["count"][filled] for key in ("confidence", "correct"))
        error = 100 * np.mean(arm["calibration_error"])
        axes.plot(x, y, marker="o", ms=3, label=f"{name} (ECE {error:.1f}%)")
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    axes.set_title(result["name"], parse_math=False)
    _add_legend(axes)


def _add_legend(axes: Axes) -> None:
    """Puts the legend below the panel, where it covers nothing."""
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2))


def _percent(value: float | None) -> str:
    return "" if value is None else percent(value)
