"""A figure of how a run went: loss, zero-shot accuracy and logit scale by step."""

from etils import epath
from matplotlib.figure import Figure

from launch.runtime.reports.image_grid import save_png
from launch.runtime.training.metrics import column, read_metrics


def write(workdir: epath.Path) -> None:
    """Writes `learning_curves.png` into a run directory."""
    lines = read_metrics(workdir)
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.plot(*column(lines, "loss"), linewidth=1)
    left.set(xlabel="step", ylabel="contrastive loss")
    left.set_ylim(bottom=0)
    steps, values = column(lines, "zero_shot_accuracy")
    middle.plot(steps, 100 * values, "o-", color="C1", markersize=3)
    middle.set(xlabel="step", ylabel="zero-shot accuracy (%)", ylim=(0, 101))
    right.plot(*column(lines, "logit_scale"), color="C2", linewidth=1)
    right.set(xlabel="step", ylabel="logit scale")
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    save_png(figure, workdir / "learning_curves.png")
