"""The figures of a study; `results` has the numbers behind them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from launch.runtime.reports import plots
from launch.runtime.reports.plots import BOTH, REAL, SYNTHETIC
from launch.runtime.reports.tables import p_text, points

_AXIS_LABELS = {"mean": "top-1 accuracy (%)", "top5_mean": "top-5 accuracy (%)"}


def _measured_keys(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Top-1, and top-5 where it was measured."""
    return [key for key in _AXIS_LABELS if all(row[key] is not None for row in rows)]


def cas(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Pairs of bars, real and synthetic, one pair per model."""
    labels = list(dict.fromkeys(row["model"] for row in rows))
    keys = _measured_keys(rows)
    width = max(4.2, 1.3 + 1.2 * len(labels)) * len(keys)
    figure = Figure(figsize=(width, 3.8), layout="constrained")
    for axes, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
        for i, (kind, color) in enumerate((("real", REAL), ("synthetic", SYNTHETIC))):
            kind_rows = [row for row in rows if bool(row["num_synthetic"]) == bool(i)]
            mean, std = (np.array([100 * row[k] for row in kind_rows]) for k in (key, _std(key)))
            positions = np.arange(len(kind_rows)) + 0.38 * (i - 0.5)
            error = std if std.any() else None
            axes.bar(
                positions, mean, 0.36, color=color, yerr=error, capsize=4, label=f"{kind} only"
            )
            for x, y, e in zip(positions, mean, std, strict=True):
                axes.annotate(
                    f"{y:.1f}", (x, y + e), (0, 3), textcoords="offset points", ha="center",
                    fontsize=9,
                )  # fmt: skip
        axes.set_xticks(range(len(labels)), labels)
        axes.margins(y=0.25)  # room for numbers and legend
        axes.set(ylabel=_AXIS_LABELS[key])
        axes.legend(loc="upper right", ncols=2, fontsize=9)
    return figure


def filters(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Bars of what a filter keeps, a random part and all, against the line of real images only."""
    figure = Figure(figsize=(max(5.0, 1.5 + 1.6 * len(rows)), 3.8), layout="constrained")
    axes = figure.subplots()
    arms = (("all", SYNTHETIC), ("random", "silver"), ("kept", BOTH))
    for i, (key, color) in enumerate(arms):
        mean, std = (np.array([100 * row[name] for row in rows]) for name in (key, _std(key)))
        positions = np.arange(len(rows)) + 0.26 * (i - 1)
        error = std if std.any() else None
        axes.bar(positions, mean, 0.24, color=color, yerr=error, capsize=4, label=key)
    for i, row in enumerate(rows):
        axes.hlines(100 * row["real"], i - 0.42, i + 0.42, color=REAL, ls="--")
    axes.plot([], [], color=REAL, ls="--", label="real only")  # for the legend
    # From just below the lowest bar: differences between filters are small.
    lowest = min(
        row[key] - row[_std(key)] for row in rows for key in ("real", "all", "random", "kept")
    )
    axes.set_ylim(bottom=max(0.0, 100 * lowest - 3))
    axes.set_xticks(range(len(rows)), [f"{row['model']}\n{row['filter']}" for row in rows])
    axes.set(ylabel=_AXIS_LABELS["mean"])
    axes.legend(fontsize=9, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    return figure


def scaling(curves: Mapping[str, Any]) -> Figure:
    """Accuracy with its deviation against the number of synthetic images, one curve per model."""
    all_points = [point for model in curves.values() for point in model["points"]]
    keys = _measured_keys(all_points)
    figure = Figure(figsize=(6.4 * len(keys), 4.2), layout="constrained")
    for axes, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
        for i, (label, model) in enumerate(curves.items()):
            curve, color = model["points"], f"C{i}"
            x, mean, std = (
                [point[name] for point in curve] for name in ("num_synthetic", key, _std(key))
            )
            plots.mean_and_std(axes, x, mean, std, label, color)
            # The first point has no synthetic images.
            axes.axhline(100 * mean[0], color=color, ls="--", lw=1, alpha=0.7)
        axes.plot([], [], color="gray", ls="--", lw=1, label="real only")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set(xlabel="synthetic images added to the real ones", ylabel=_AXIS_LABELS[key])
        _copies_axis(axes, curve)
        axes.grid(alpha=0.25)
        axes.legend()
    return figure


def _copies_axis(axes: Axes, curve: Sequence[Mapping[str, Any]]) -> None:
    """The same numbers on the top axis, as multiples of the real set."""
    copy_size = curve[-1]["num_synthetic"] / curve[-1]["copies"]
    top = axes.secondary_xaxis("top", functions=(lambda n: n / copy_size, lambda k: k * copy_size))
    top.set_xticks([point["copies"] for point in curve])
    top.set_xlabel(f"times the real set ({curve[0]['num_real']:,} images)")


def models(comparison: Mapping[str, Any]) -> Figure:
    """Each model's three accuracies on a line; beside it, the gain from synthetic images."""
    rows = comparison["rows"]
    figure = Figure(figsize=(10, 1.7 + 0.42 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.7, 1))
    # 1. Left: accuracies of each model, joined by a line.
    positions = np.arange(len(rows))
    both = f"real + {comparison['arms']['synthetic'].replace('_', ' ')}"
    for key, color, label, shift in (
        ("synthetic", SYNTHETIC, "synthetic only", -0.13),
        ("real", REAL, "real only", 0.0),
        ("both", BOTH, both, 0.13),
    ):
        mean, std = (100 * np.array([row[k] for row in rows]) for k in (key, f"{key}_std"))
        # Shifted up or down if there are error bars, which would hide each other.
        shift *= std.any()
        left.errorbar(
            mean, positions + shift, xerr=std if std.any() else None, fmt="o", ms=7, capsize=3,
            color=color, label=label,
        )  # fmt: skip
    ends = [[100 * row[key] for key in ("real", "synthetic", "both")] for row in rows]
    left.hlines(positions, np.min(ends, 1), np.max(ends, 1), color="lightgray", lw=2, zorder=0)
    left.set_yticks(positions, [row["model"] for row in rows])
    left.set_ylim(len(rows) - 0.5, -0.5)  # the first model on top
    left.set(xlabel="top-1 accuracy (%)")
    left.grid(axis="x", alpha=0.25)
    figure.legend(loc="outside upper center", ncols=3, fontsize=9, frameon=False)
    # 2. Right: what both bring against real only.
    gains = np.array([100 * row["difference"] for row in rows])
    right.barh(positions, gains, 0.55, color=[BOTH if gain > 0 else SYNTHETIC for gain in gains])
    right.axvline(0, color="black", lw=0.8)
    for y, gain in zip(positions, gains, strict=True):
        right.annotate(
            f"{gain:+.2f}", (gain, y), (4 if gain >= 0 else -4, 0), textcoords="offset points",
            ha="left" if gain >= 0 else "right", va="center", fontsize=9,
        )  # fmt: skip
    right.margins(x=0.25)
    right.set(xlabel="both against real only (points)")
    over = comparison["both"]
    if over["p_value"] is not None:
        gain, p_value = points(over["mean_difference"]), p_text(over["p_value"])
        right.set_title(f"mean {gain}, p = {p_value} over models", fontsize=10)
    return figure


def per_class(comparison: Mapping[str, Any], class_names: Sequence[str]) -> Figure:
    """Left: a point per class, synthetic against real. Right: all classes by real accuracy."""
    figure = Figure(figsize=(11, 4.9), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    real, synthetic = np.asarray(comparison["real"]), np.asarray(comparison["synthetic"])
    plots.class_scatter(left, real, synthetic, class_names)
    shares = f"synthetic better in {100 * comparison['share_better']:.0f}% of classes"
    r = comparison["correlation"]
    left.set_title(shares + ("" if r is None else f", correlation {r:.2f}"), fontsize=10)
    order = np.argsort(real, kind="stable")
    size = 4 if len(order) <= 100 else 2
    for values, color, label in ((real, REAL, "real only"), (synthetic, SYNTHETIC, "synthetic")):
        right.plot(100 * values[order], "o", ms=size, color=color, alpha=0.75, label=label)
    if len(order) <= 30:
        right.set_xticks(
            range(len(order)), [class_names[i] for i in order], rotation=45, ha="right"
        )
        right.set(ylabel="accuracy (%)")
    else:
        right.set(xlabel="classes, sorted by accuracy of real only", ylabel="accuracy (%)")
    right.grid(alpha=0.25)
    right.legend()
    return figure


def _std(key: str) -> str:
    return key.replace("mean", "std")
