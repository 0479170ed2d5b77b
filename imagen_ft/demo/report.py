"""The demo's report: what synthetic digits look like, and what they were worth."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure, SubFigure
from scipy.spatial.distance import cdist

from input_pipeline.records.image_codec import decode_image
from input_pipeline.source import ArraySource, in_memory
from input_pipeline.sources.digits import digits
from input_pipeline.synthetic.source import SyntheticSource
from launch.files import read_fields, write_json
from launch.goodput import read_attempts, summary
from launch.runtime.reports import image_grid, plots
from launch.runtime.reports.html import Report
from launch.runtime.reports.tables import p_text, percent, points, text_table
from launch.runtime.training.metrics import column, read_metrics

# Synthetic digits an arm, in multiples of the 30 real ones.
COPIES = {"real": 0, "real+synthetic_1x": 1, "real+synthetic_10x": 10, "real+synthetic_30x": 30}
ORDER = (*COPIES, "synthetic", "pretrained", "pool")
_STAGES = ("pretrain_base4", "finetune_base4", "pretrain_sr8", "finetune_sr8")
# What the demo promises: a gain in accuracy of at least 5 points, at a p-value below 0.001.
POINTS, P_VALUE = 0.05, 1e-3


def write(root: Path, wall_seconds: float, peak_memory_bytes: int) -> dict[str, Any]:
    """Writes report.html, report.png and report.json into `root`; returns the latter's content."""
    # 1. Accuracies.
    path = root / "classifiers" / "evaluation_test.json"
    evaluation = read_fields(path, arms=dict, class_names=list, num_images=int)
    result = {
        "arms": {name: evaluation["arms"][name] for name in ORDER},
        "class_names": evaluation["class_names"],
        "num_test_images": evaluation["num_images"],
        "wall_seconds": wall_seconds,
        "peak_memory_bytes": peak_memory_bytes,
    }
    # 2. Distances to the nearest training digit; those of unseen real digits show what is normal.
    synthetic = in_memory(SyntheticSource(root / "synthetic"))
    train, pool = digits("train"), digits("pool")
    result["nearest_neighbours"] = {
        "synthetic_to_train": _mean_distance(synthetic.images, train.images),
        "validation_to_train": _mean_distance(digits("validation").images, train.images),
        "synthetic_to_pool": _mean_distance(synthetic.images, pool.images),
        "validation_to_pool": _mean_distance(digits("validation").images, pool.images),
    }
    # 3. Write.
    _page(root, result, synthetic, train, pool).write(root / "report.html")
    image_grid.save_png(_picture(root, result), root / "report.png")
    write_json(root / "report.json", result)
    return result


def verdict(result: dict[str, Any]) -> tuple[str, bool]:
    """Whether synthetic digits helped, as a sentence and as a bool."""
    arms = result["arms"]
    mixed = {name: arm for name, arm in arms.items() if name.startswith("real+synthetic")}

    def holds(name: str) -> bool:
        p_value = mixed[name]["p_value"]
        gain = mixed[name]["mean"] - arms["real"]["mean"]
        return gain >= POINTS and p_value is not None and p_value < P_VALUE

    # The best arm that keeps the promise; if none does, the most accurate one.
    name = max(mixed, key=lambda arm: (holds(arm), mixed[arm]["mean"]))
    gain, p_value = mixed[name]["mean"] - arms["real"]["mean"], mixed[name]["p_value"]
    good = holds(name)
    helped = "helped" if good else "did not help enough"
    shown = "none" if p_value is None else f"{p_value:.1g}"
    return (
        f"Synthetic digits {helped}: {name} reaches {100 * mixed[name]['mean']:.1f}%, "
        f"{100 * gain:+.1f} points against real only (paired t-test over seeds, p = {shown}; "
        f"asked for: {100 * POINTS:.0f} points at p < {P_VALUE}).",
        good,
    )


def fine_tuning(result: dict[str, Any], losses: dict[str, tuple[float, float]]) -> str:
    """What fine-tuning changed, in sentences.

    `losses` has for each stage the first and last validation loss of its fine-tuning.
    """
    # A difference within one standard deviation over seeds is called chance.
    arms = result["arms"]
    before, after = arms["pretrained"], arms["synthetic"]
    spread = max(before["std"], after["std"])
    gain = after["mean"] - before["mean"]
    said = "no more than chance" if abs(gain) <= spread else "a gain" if gain > 0 else "a loss"
    of_stages = ", ".join(
        f"{stage} {first:.5f} to {last:.5f}" for stage, (first, last) in losses.items()
    )
    return (
        "Classifiers trained on 900 digits from the pretrained cascade reach "
        f"{100 * before['mean']:.1f}%, on the same number from the fine-tuned one "
        f"{100 * after['mean']:.1f}% ({100 * gain:+.1f} points, deviation over seeds "
        f"{100 * spread:.1f}): {said}. Validation loss from the first evaluation of fine-tuning to "
        f"its last: {of_stages}. 30 digits are few next to the 1,000 digits of the same kind that "
        "the cascade was pretrained on."
    )


def rows(result: dict[str, Any]) -> list[list[str]]:
    """The table's cells, one row an arm."""
    real = result["arms"]["real"]["mean"]
    return [
        [
            name,
            percent(arm["mean"], arm["std"]),
            "" if name == "real" else points(arm["mean"] - real),
            p_text(arm["p_value"]),
        ]
        for name, arm in result["arms"].items()
    ]


HEADER = ["arm", "test accuracy (%)", "against real", "p-value"]


def table(result: dict[str, Any]) -> str:
    """The table for a terminal."""
    return text_table(HEADER, rows(result), rule=True)


def _picture(root: Path, result: dict[str, Any]) -> Figure:
    # The whole demo in one picture, for the README.
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1, 1.1)).ravel()
    _draw_samples(left, root / "samples", result["class_names"], images_a_class=4)
    _draw_accuracy(right, result)
    return figure


def _page(
    root: Path,
    result: dict[str, Any],
    synthetic: ArraySource,
    train: ArraySource,
    pool: ArraySource,
) -> Report:
    # 1. Verdict and accuracies.
    report = Report("What synthetic digits are worth")
    report.verdict(*verdict(result))
    report.text(
        "A cascade (4x4, then 8x8) was pretrained on 1,000 digits and fine-tuned on 30 labelled "
        f"ones, 3 per class. It generated {len(synthetic):,} digits. The same small ResNet was "
        f"trained on each mix, and tested on {result['num_test_images']} digits that were used for "
        f"nothing else. Wall time {result['wall_seconds']:.0f} s, peak memory at most "
        f"{result['peak_memory_bytes'] / 2**30:.2f} GiB."
    )
    report.table(HEADER, rows(result))
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    _draw_accuracy(figure, result)
    report.figure(
        figure,
        "Accuracy against the number of synthetic digits: mean and standard deviation over seeds.",
    )
    # 2. Fine-tuning, and what it draws.
    report.heading("What fine-tuning changed")
    losses = {}
    for stage in ("base4", "sr8"):
        _, values = column(read_metrics(root / f"finetune_{stage}"), "validation_loss")
        losses[stage] = float(values[0]), float(values[-1])
    report.text(fine_tuning(result, losses))
    report.heading("Synthetic digits")
    figure = Figure(figsize=(11, 7), layout="constrained")
    _draw_samples(figure, root / "samples", result["class_names"], images_a_class=8)
    report.figure(
        figure,
        "Class by class: the base stage's 4x4 digit, and to its right the 8x8 digit made of it.",
    )
    # 3. Copies of training digits.
    report.heading("Is it copying?")
    distances = result["nearest_neighbours"]
    report.text(
        "Each synthetic digit (left) next to the nearest of the 30 real digits it was fine-tuned "
        "on (middle) and of the 1,000 it was pretrained on (right). Mean distance to the nearest "
        f"of the 30: {distances['synthetic_to_train']:.1f} for synthetic digits, "
        f"{distances['validation_to_train']:.1f} for real digits it has not seen; of the 1,000: "
        f"{distances['synthetic_to_pool']:.1f} and {distances['validation_to_pool']:.1f} (root "
        "mean square over pixels, of 255). A copy would be at 0."
    )
    report.figure(_neighbour_figure(synthetic, train, pool), "Synthetic, nearest of 30, of 1,000.")
    # 4. Details: classes, training curves, times.
    report.heading("Class by class")
    report.figure(
        _per_class_figure(result),
        "Accuracy of classifiers trained on synthetic digits only against real digits only.",
    )
    report.heading("Training")
    report.figure(_curves_figure(root), "Training loss, and the loss on the 100 validation digits.")
    runs = (*_STAGES, *(f"classifiers/{arm}" for arm in ORDER))
    times = [[run, summary(read_attempts(root / run))] for run in runs]
    report.table(["run", "where the time went"], times)
    return report


def _distances(
    images: UInt8[np.ndarray, "n h w c"], others: UInt8[np.ndarray, "m h w c"]
) -> Float[np.ndarray, "n m"]:
    # Root mean square differences over pixels, in units of 1/255.
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (images, others))
    return cdist(a, b) / np.sqrt(a.shape[1])


def _mean_distance(images: np.ndarray, others: np.ndarray) -> float:
    return float(_distances(images, others).min(axis=1).mean())


def _draw_samples(
    figure: Figure | SubFigure, folder: Path, class_names: list[str], images_a_class: int
) -> None:
    # File names of imagen_ft.sample sort by number, then size: each digit at 4 px, then at 8 px.
    rows = [sorted(folder.glob(f"*_{name}_*px.png"))[: 2 * images_a_class] for name in class_names]
    axes = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    for row, (name, paths) in enumerate(zip(class_names, rows, strict=True)):
        for cell, path in zip(axes[row], paths, strict=True):
            image_grid.show(cell, decode_image(path.read_bytes(), 1))
        axes[row, 0].set_ylabel(name, rotation=0, ha="right", va="center")


def _neighbour_figure(synthetic: ArraySource, train: ArraySource, pool: ArraySource) -> Figure:
    # Three synthetic digits of each class, each with its nearest real ones.
    labels = synthetic.labels
    picks = np.concatenate([np.flatnonzero(labels == label)[:3] for label in np.unique(labels)])
    images = synthetic.images[picks]
    near = [s.images[_distances(images, s.images).argmin(axis=1)] for s in (train, pool)]
    trio = np.stack([images, *near], axis=1).reshape(-1, *images.shape[1:])  # [3 * n, h, w, c]
    return image_grid.grid(list(trio), ["synthetic", "of 30", "of 1,000"] * len(picks), 9)


def _draw_accuracy(figure: Figure | SubFigure, result: dict[str, Any]) -> None:
    axes = figure.subplots()
    arms = result["arms"]
    # The curve: arms with growing numbers of synthetic digits. The lines: arms without the 30.
    series = [arms[name] for name in COPIES]
    positions, numbers = range(len(series)), [30 * copies for copies in COPIES.values()]
    mean, std = ([arm[key] for arm in series] for key in ("mean", "std"))
    plots.mean_and_std(axes, positions, mean, std, "30 real + synthetic")
    for name, style in (("synthetic", "--"), ("pool", ":")):
        label = "900 synthetic only" if name == "synthetic" else "pool of 1,000 real"
        axes.axhline(100 * arms[name]["mean"], ls=style, color="gray", label=label)
    axes.set_xticks(positions, [str(number) for number in numbers])
    axes.set(xlabel="synthetic digits", ylabel="test accuracy (%)")
    axes.legend()


def _per_class_figure(result: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(5, 4.6), layout="constrained")
    axes = figure.subplots()
    real, fake = (result["arms"][name]["per_class"] for name in ("real", "synthetic"))
    plots.class_scatter(axes, real, fake, result["class_names"])
    return figure


def _curves_figure(root: Path) -> Figure:
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    for axes, run in zip(figure.subplots(2, 2).ravel(), _STAGES, strict=True):
        metrics = read_metrics(root / run)
        axes.plot(*column(metrics, "loss"), label="training", alpha=0.6)
        axes.plot(*column(metrics, "validation_loss"), label="validation", marker="o")
        axes.set(title=run, xlabel="step", ylabel="loss", yscale="log")
        axes.legend()
    return figure
