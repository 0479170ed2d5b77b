"""Plots of accuracies, all in percent, that several reports draw."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

REAL, SYNTHETIC, BOTH = "#1f6fb4", "#d1495b", "#2a9d6f"
# More class names than this would hide each other.
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
    """A line through mean accuracies in [0, 1], with standard deviations as bars and a band."""
    means, stds = 100 * np.asarray(mean), 100 * np.asarray(std)
    bars = axes.errorbar(x, means, stds, marker="o", capsize=4, label=label, color=color)
    if stds.any():
        low, high = means - stds, means + stds
        axes.fill_between(x, low, high, color=bars[0].get_color(), alpha=0.15, lw=0)


def class_scatter(axes: Axes, real: Values, synthetic: Values, class_names: Sequence[str]) -> None:
    """Accuracies in [0, 1] by class: trained on synthetic images against trained on real ones."""
    # Both axes have the same range, in percent; below the diagonal, real images are better.
    xs, ys = 100 * np.asarray(real), 100 * np.asarray(synthetic)
    few = len(xs) <= _MOST_NAMES
    both = np.concatenate([xs, ys])
    room = 0.05 * max(np.ptp(both), 5.0)
    # Names stand to the right of their points and need more room there.
    span = [max(both.min() - room, -3.0), both.max() + (3 * room if few else room)]
    axes.plot(span, span, color="gray", lw=1, zorder=1)
    axes.scatter(xs, ys, s=30 if few else 12, alpha=0.9 if few else 0.45, lw=0, zorder=2)
    if few:
        for name, x, y in zip(class_names, xs, ys, strict=True):
            axes.annotate(name, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=9)
    axes.set(xlim=span, ylim=span, aspect="equal")
    axes.set(xlabel="trained on real images (%)", ylabel="trained on synthetic images (%)")
