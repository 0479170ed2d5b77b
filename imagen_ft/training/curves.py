"""A picture of how a run went: its losses by step and, if measured, the metric of its images."""

from etils import epath
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from launch.runtime.reports.image_grid import save_png
from launch.runtime.training.metrics import column, read_metrics


class _Plain(LogFormatter):
    """Labels those ticks of a logarithmic axis that have room: 0.41, not 4.1 x 10^-1."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def write(workdir: epath.Path, metric: str = "") -> None:
    """Writes `learning_curves.png`; `metric` as `sampled_metric.metric_name`, '' for none."""
    lines = read_metrics(workdir)
    figure = Figure(figsize=(9 if metric else 5, 3.4), layout="constrained")
    panels = figure.subplots(1, 2 if metric else 1, squeeze=False).ravel()
    # 1. Losses: training, and validation of each average.
    panels[0].plot(*column(lines, "loss"), alpha=0.6, label="training")
    # A dict, for names in the order in which they were logged.
    averages = {name: None for line in lines for name in line if name.startswith("validation_loss")}
    for name in averages:
        label = name.replace("_loss", "").replace("_", " ")
        panels[0].plot(*column(lines, name), marker="o", markersize=3, label=label)
    panels[0].set(xlabel="step", ylabel="loss", yscale="log")
    panels[0].yaxis.set_major_formatter(_Plain())
    panels[0].yaxis.set_minor_formatter(_Plain())
    panels[0].legend(frameon=False)
    # 2. The metric.
    if metric:
        panels[1].plot(*column(lines, metric), marker="o", markersize=3)
        panels[1].set(xlabel="step", ylabel=metric.removeprefix("sampled_").replace("_", " "))
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    save_png(figure, workdir / "learning_curves.png")
