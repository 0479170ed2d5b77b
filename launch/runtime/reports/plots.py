"""Plots of accuracies, all in percent, that more than one report draws."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

REAL, GENERATED, BOTH = "#1f6fb4", "#d1495b", "#2a9d6f"
# More names than this hide each other.
_MOST_NAMES = 30
Values = Sequence[float] | np.ndarray


def mean_and_std(
    axes: Axes,
    x: Values,
    mean: Values,
    std: Values,
    label: str,
    color: str | None = None,
) -> None:
    """A line through means, with their standard deviations as bars and as a band.

    Args:
        axes: to draw on.
        x: of the points.
        mean: accuracies in [0, 1].
        std: their standard deviations.
        label: for the legend.
        color: matplotlib's next one if None.
    """
    means, stds = 100 * np.asarray(mean), 100 * np.asarray(std)
    bars = axes.errorbar(x, means, stds, marker="o", capsize=4, label=label, color=color)
    if stds.any():
        low, high = means - stds, means + stds
        axes.fill_between(x, low, high, color=bars[0].get_color(), alpha=0.15, lw=0)


def class_scatter(axes: Axes, real: Values, generated: Values, class_names: Sequence[str]) -> None:
    """Accuracy by class of training on generated images against training on real ones.

    Args:
        axes: to draw on.
        real: accuracies in [0, 1], one a class.
        generated: the same.
        class_names: written beside the points where there are few.
    """
    xs, ys = 100 * np.asarray(real), 100 * np.asarray(generated)
    few = len(xs) <= _MOST_NAMES
    both = np.concatenate([xs, ys])
    room = 0.05 * max(np.ptp(both), 5.0)
    # A name stands to the right of its point.
    span = [max(both.min() - room, -3.0), both.max() + (3 * room if few else room)]
    axes.plot(span, span, color="gray", lw=1, zorder=1)
    axes.scatter(xs, ys, s=30 if few else 12, alpha=0.9 if few else 0.45, lw=0, zorder=2)
    if few:
        for name, x, y in zip(class_names, xs, ys, strict=True):
            axes.annotate(name, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=9)
    axes.set(xlim=span, ylim=span, aspect="equal")
    axes.set(xlabel="trained on real images (%)", ylabel="trained on generated images (%)")
