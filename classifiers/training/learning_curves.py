"""A figure of how a run went: loss and accuracy by step, one line per seed."""

from collections.abc import Mapping, Sequence

from etils import epath
from matplotlib.figure import Figure

from classifiers.training import vmap_seeds
from launch.runtime.reports.image_grid import save_png
from launch.runtime.training.metrics import column, read_metrics

# Of one seed: a dict per line of metrics.jsonl.
MetricLines = Sequence[Mapping[str, float]]
# Metrics of each seed; when seeds are trained together they are called NAME_by_seed/SEED.
NAMES = ("loss", "accuracy", "validation_accuracy")


def read(workdir: epath.Path, count: int) -> list[MetricLines]:
    """Metrics of each seed, whether the seeds were trained in turn or together."""
    together = read_metrics(workdir / vmap_seeds.FOLDER)
    if not together:
        return [read_metrics(workdir / f"seed_{seed}") for seed in range(count)]
    return [
        [
            {"step": line["step"]}
            | {name: line[key] for name in NAMES if (key := f"{name}_by_seed/{seed}") in line}
            for line in together
        ]
        for seed in range(count)
    ]


def draw(runs: Sequence[MetricLines]) -> Figure:
    """Left: training loss. Right: accuracy on validation images and on the training batches."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    thin = max(0.25, 0.9 / len(runs) ** 0.5)  # many seeds get thin lines
    for number, metrics in enumerate(runs):
        label = number == 0  # one legend entry for all seeds
        left.plot(*column(metrics, "loss"), color="C0", alpha=thin, linewidth=1)
        steps, values = column(metrics, "accuracy")
        right.plot(
            steps, 100 * values, color="C0", alpha=thin, linewidth=1,
            label="training batches" if label else None,
        )  # fmt: skip
        steps, values = column(metrics, "validation_accuracy")
        right.plot(
            steps, 100 * values, "o-", color="C1", alpha=max(thin, 0.5), markersize=3,
            label="validation images" if label else None,
        )  # fmt: skip
    left.set(xlabel="step", ylabel="training loss")
    left.set_ylim(bottom=0)
    right.set(xlabel="step", ylabel="accuracy (%)", ylim=(0, 101))
    right.legend(frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def write(workdir: epath.Path, count: int) -> None:
    """Writes `learning_curves.png` into a run directory."""
    save_png(draw(read(workdir, count)), workdir / "learning_curves.png")
