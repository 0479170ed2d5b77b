"""Figures of a sweep: measures against a dimension of the grid, and against each other."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from imagen_ft.sweeping.grid import text
from imagen_ft.sweeping.rows import (
    CAS,
    Row,
    best_first,
    higher_is_better,
    label_of,
    pareto_front,
    value_of,
)
from launch.fields import Fields

# Candidates for the horizontal axis, and for separate lines: the first with several values wins.
_STEPS = "num_steps"
_ALONG = ("guidance_weight", "noise_augmentation", "logvar_coeff", "eta", _STEPS)
_LINES = ("logvar_coeff", "noise_augmentation", "num_steps", "sampler", "ema", "eta")
# Inches.
_SIZE = (6.4, 4.2)


def axes_of(grid: Fields) -> tuple[str, str]:
    """The dimensions for the horizontal axis and for the lines; '' if the grid has none."""
    several = [name for name, values in grid.items() if len(values) > 1]
    along = next((name for name in _ALONG if name in several), "")
    lines = next((name for name in _LINES if name in several and name != along), "")
    return along, lines


def against(rows: Sequence[Row], along: str, lines: str, measure: str) -> Figure | None:
    """A measure of `CHOICES` along a numeric dimension, with a line for each value of `lines`.

    The rows must have equally many images. Returns None if there is nothing to draw.
    """
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    # 1. Points of each line. Rows come best first: setdefault keeps the best over other dimensions.
    curves: dict[str, dict[float, Row]] = {}
    for row in best_first(rows, measure):
        if along in row.values and not math.isnan(value_of(row, measure)):
            name = f"{lines} {text(row.values[lines])}" if lines in row.values else ""
            # Steps cost differently by solver: show evaluations of the network instead.
            x = row.evaluations if along == _STEPS else row.values[along]
            curves.setdefault(name, {}).setdefault(x, row)
    if not curves:
        return None
    # 2. Draw the lines; CAS has error bars over seeds.
    for name in sorted(curves):
        curve = dict(sorted(curves[name].items()))
        values = [_scaled(row, measure) for row in curve.values()]
        if measure == CAS:
            stds = [100 * row.score.std if row.score else 0.0 for row in curve.values()]
            axes.errorbar(list(curve), values, stds, marker="o", capsize=4, label=name)
        else:
            axes.plot(list(curve), values, marker="o", label=name)
    # 3. Axes: costs span powers of two, distances several magnitudes.
    xlabel = "network evaluations per image" if along == _STEPS else along
    axes.set(xlabel=xlabel.replace("_", " "), ylabel=_label(rows, measure))
    if along == _STEPS:
        axes.set_xscale("log", base=2)
        shown = [value_of(row, measure) for curve in curves.values() for row in curve.values()]
        if measure != CAS and min(shown) > 0:
            axes.set_yscale("log")
    if any(curves):
        axes.legend()
    axes.grid(alpha=0.25)
    return figure


def trade_off(rows: Sequence[Row], first: str, second: str) -> Figure | None:
    """Two measures of all points, with the Pareto front; None for fewer than two points."""
    # Only points that have both measures.
    both = [
        row
        for row in rows
        if not any(math.isnan(value_of(row, measure)) for measure in (first, second))
    ]
    if len(both) < 2:
        return None
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    xs, ys = _columns(both, first, second)
    axes.scatter(xs, ys, s=18, alpha=0.6, lw=0)
    # The front: points that no other one beats in both.
    front = pareto_front(both, first, second)
    xs, ys = _columns(front, first, second)
    axes.plot(xs, ys, color="C3", marker="o", lw=1.2, label="front")
    _name(axes, front, xs, ys)
    axes.set(xlabel=_label(rows, first), ylabel=_label(rows, second))
    axes.legend()
    axes.grid(alpha=0.25)
    return figure


def _columns(rows: Sequence[Row], *measures: str) -> list[list[float]]:
    return [[_scaled(row, measure) for row in rows] for measure in measures]


def _name(axes: Axes, rows: Sequence[Row], xs: Sequence[float], ys: Sequence[float]) -> None:
    # More than a dozen labels would overlap.
    for row, x, y in list(zip(rows, xs, ys, strict=True))[:12]:
        value = row.values.get("guidance_weight")
        if value is not None:
            axes.annotate(f"w {text(value)}", (x, y), (4, 4), textcoords="offset points", size=8)


def _scaled(row: Row, measure: str) -> float:
    # Accuracies in percent.
    return value_of(row, measure) * (100 if measure == CAS else 1)


def _label(rows: Sequence[Row], measure: str) -> str:
    better = "more" if higher_is_better(measure) else "less"
    return f"{label_of(rows, measure)}, {better} is better"
