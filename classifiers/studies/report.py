"""What people read of a study: tables, PNG files and a page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from classifiers.studies import figures
from input_pipeline.imagenet import in_words
from launch.files import write_atomic, write_json
from launch.runtime.reports import image_grid
from launch.runtime.reports.html import Report
from launch.runtime.reports.tables import p_text, percent, points, text_table

Table = tuple[list[str], list[list[str]]]
_SIGNIFICANCE = 0.05  # p-values below it count
_EXTREMES = 5  # classes shown at each end
_CAS = (
    "Classification accuracy score (Ravuri & Vinyals 2019): accuracy on real images of models "
    "trained on synthetic images only, next to the same models trained on real ones."
)
_SCALING = (
    "Accuracy against the number of synthetic images added to the real ones: mean and standard "
    "deviation over seeds. p: paired t-test over seeds against real only."
)
_MODELS = (
    "The same recipe of each model on real images, on synthetic ones and on both. p: paired t-test "
    "of both against real only, over the seeds of a model."
)
_PER_CLASS = (
    "Accuracy by class, the mean over seeds; each point is a class. Above the line synthetic "
    "images train better than real ones."
)

_FILTERS = (
    "Real images with all synthetic ones, with those that a filter keeps, and with the same "
    "number of each class drawn at random: the kept images have to beat the random ones. p: "
    "paired t-test over seeds."
)


def write(workdir: Path, title: str, result: Mapping[str, Any], training: str) -> None:
    """Writes study.json, one PNG file per figure, and report.html with everything.

    `result` is that of `results.collect`, `training` that of `launch.goodput.summary`.
    """
    # 1. The numbers, for programs.
    write_json(workdir / "study.json", result)
    # 2. The page: verdicts first, then a section per study.
    report = Report(title)
    for text, good in verdicts(result):
        report.verdict(text, good)
    evaluation = result["evaluation"]
    report.text(
        f"{sum(map(len, result['arms'].values()))} classifiers, evaluated on the "
        f"{evaluation['num_images']:,} images of the set {evaluation['set']!r}. Accuracies are in "
        "percent, differences in percentage points; ± is the standard deviation over seeds."
    )
    report.text(f"Training: {training}.")
    sections = {"cas": _cas, "scaling": _scaling, "models": _models, "per_class": _per_class,
                "filters": _filters}  # fmt: skip
    for study, section in sections.items():
        if study in result:
            section(report, workdir, result)
    report.write(workdir / "report.html")


def verdicts(result: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """Sentences that sum up the study, each with whether it is good news."""
    # Where there is a test over models, it speaks alone.
    if "models" in result:
        both = result["models"]["both"]
        rows = result["models"]["rows"]
        p_value = both["p_value"] if len(rows) > 1 else rows[0]["p_value"]
        over = "models" if len(rows) > 1 else "seeds"
        return [(
            f"Synthetic images next to real ones: {both['num_better']} of {len(rows)} models gain, "
            f"{points(both['mean_difference'])} points on average {_test(p_value, over)}.",
            _holds(both["mean_difference"], p_value),
        )]  # fmt: skip
    sentences = []
    for model, scaled in result.get("scaling", {}).items():
        best = next(point for point in scaled["points"] if point["arm"] == scaled["best"])
        sentences.append((
            f"{model} is best with {best['num_synthetic']:,} synthetic images: "
            f"{percent(best['mean'])}%, {points(best['difference'])} points against real only "
            f"{_test(best['p_value'], 'seeds')}.",
            _holds(best["difference"], best["p_value"]),
        ))  # fmt: skip
    for row in result.get("filters", ()):
        sentences.append((
            f"{row['filter']}, {row['model']}: the kept images score {points(row['difference'])} "
            f"points against the same number at random {_test(row['p_value'], 'seeds')}.",
            _holds(row["difference"], row["p_value"]),
        ))  # fmt: skip
    return sentences


def _holds(difference: float, p_value: float | None) -> bool:
    return difference > 0 and p_value is not None and p_value < _SIGNIFICANCE


def _test(p_value: float | None, over: str) -> str:
    if p_value is None:
        return f"(no paired t-test over {over}: too few, or all equal)"
    return f"(paired t-test over {over}, p = {p_text(p_value)})"


def tables(result: Mapping[str, Any]) -> str:
    """The tables for a terminal."""
    makers = {"cas": cas_table, "scaling": scaling_table, "models": models_table,
              "per_class": per_class_table, "filters": filters_table}  # fmt: skip
    texts = [f"{study}\n{text_table(*make(result), rule=True)}" for study, make in makers.items()
             if study in result]  # fmt: skip
    return "\n\n".join([*texts, *(text for text, _ in verdicts(result))])


def cas_table(result: Mapping[str, Any]) -> Table:
    """A row per model and set of images (Azizi et al. 2023, table 2)."""
    rows = result["cas"]
    top5 = rows[0]["top5_mean"] is not None
    header = ["model", "trained on", "images", "top-1 (%)", *["top-5 (%)"] * top5, "against real",
              "p"]  # fmt: skip
    cells = []
    for row in rows:
        fake, many = row["num_synthetic"], len(_arm(result, row)["accuracies"]) > 1
        cells.append([
            row["model"],
            "synthetic" if fake else "real",
            f"{fake or row['num_real']:,}",
            *_scores(row, top5, many),
            points(row["difference"]) if fake else "",
            p_text(row["p_value"]),
        ])  # fmt: skip
    return header, cells


def scaling_table(result: Mapping[str, Any]) -> Table:
    """A row per model and number of synthetic images (Azizi et al. 2023, table A.3)."""
    flat = [{"model": m, **point} for m, s in result["scaling"].items() for point in s["points"]]
    top5 = flat[0]["top5_mean"] is not None
    header = ["model", "times", "synthetic", "in all", "top-1 (%)", *["top-5 (%)"] * top5,
              "against real", "p"]  # fmt: skip
    cells = [
        [
            row["model"],
            f"{row['copies']}x",
            f"{row['num_synthetic']:,}",
            f"{row['num_real'] + row['num_synthetic']:,}",
            *_scores(row, top5, len(_arm(result, row)["accuracies"]) > 1),
            points(row["difference"]) if row["copies"] else "",
            p_text(row["p_value"]),
        ]
        for row in flat
    ]
    return header, cells


def models_table(result: Mapping[str, Any]) -> Table:
    """A row per model, as in table 3 of Azizi et al. 2023, and the mean of all."""
    header = ["model", "input", "parameters", "real (%)", "synthetic (%)", "real + synthetic (%)",
              "difference", "p"]  # fmt: skip
    comparison = result["models"]
    cells = []
    for row in comparison["rows"]:
        size, many = result["sizes"][row["model"]], row["seeds"] > 1
        arms = [percent(row[k], row[f"{k}_std"] if many else None)
                for k in ("real", "synthetic", "both")]  # fmt: skip
        cells.append([
            row["model"], f"{size['input']}x{size['input']}", _short(size["parameters"]), *arms,
            points(row["difference"]), p_text(row["p_value"]),
        ])  # fmt: skip
    if len(comparison["rows"]) > 1:
        means = [percent(np.mean([row[k] for row in comparison["rows"]]))
                 for k in ("real", "synthetic", "both")]  # fmt: skip
        both = comparison["both"]
        cells.append(["mean; paired t-test over models", "", "", *means,
                      points(both["mean_difference"]), p_text(both["p_value"])])  # fmt: skip
    return header, cells


def per_class_table(result: Mapping[str, Any]) -> Table:
    """A row per model: in how many classes synthetic images train better."""
    header = ["model", "classes", "synthetic better", "equal", "real better", "share better (%)",
              "correlation"]  # fmt: skip
    cells = [
        [
            model,
            str(len(comparison["real"])),
            str(comparison["better"]),
            str(comparison["equal"]),
            str(comparison["worse"]),
            f"{100 * comparison['share_better']:.1f}",
            "" if comparison["correlation"] is None else f"{comparison['correlation']:.2f}",
        ]
        for model, comparison in result["per_class"].items()
    ]
    return header, cells


def filters_table(result: Mapping[str, Any]) -> Table:
    """A row per model and filter: what is kept beside as many at random."""
    header = ["model", "filter", "kept", "of", "real (%)", "+ all (%)", "+ random (%)",
              "+ kept (%)", "kept - random", "p"]  # fmt: skip
    cells = []
    for row in result["filters"]:
        many = row["seeds"] > 1
        arms = [percent(row[k], row[f"{k}_std"] if many else None)
                for k in ("real", "all", "random", "kept")]  # fmt: skip
        cells.append([
            row["model"], row["filter"], f"{row['num_kept']:,}", f"{row['num_synthetic']:,}",
            *arms, points(row["difference"]), p_text(row["p_value"]),
        ])  # fmt: skip
    return header, cells


def extremes_table(comparison: Mapping[str, Any], class_names: Sequence[str]) -> Table:
    """The classes that gain and lose most by training on synthetic images."""
    gains = np.subtract(comparison["synthetic"], comparison["real"])
    order = np.argsort(-gains, kind="stable")  # the largest gain first
    shown = order if len(order) <= 2 * _EXTREMES else [*order[:_EXTREMES], *order[-_EXTREMES:]]
    cells = [
        [class_names[i], percent(comparison["real"][i]), percent(comparison["synthetic"][i]),
         points(gains[i])]
        for i in shown
    ]  # fmt: skip
    return ["class", "real (%)", "synthetic (%)", "difference"], cells


def _cas(report: Report, workdir: Path, result: Mapping[str, Any]) -> None:
    report.heading("Classification accuracy score")
    report.table(*cas_table(result))
    _figure(report, workdir / "cas.png", figures.cas(result["cas"]), _CAS)


def _scaling(report: Report, workdir: Path, result: Mapping[str, Any]) -> None:
    report.heading("How many synthetic images")
    _figure(report, workdir / "scaling.png", figures.scaling(result["scaling"]), _SCALING)
    report.table(*scaling_table(result))


def _models(report: Report, workdir: Path, result: Mapping[str, Any]) -> None:
    report.heading("Real, synthetic, both")
    report.table(*models_table(result))
    for kind, name in (("both", "Both"), ("synthetic", "Synthetic only")):
        comparison = result["models"][kind]
        report.text(
            f"{name} against real only: {comparison['num_better']} of {comparison['num_models']} "
            f"models are better, {points(comparison['mean_difference'])} ± "
            f"{100 * comparison['std_difference']:.2f} points over models "
            f"{_test(comparison['p_value'], 'models')}."
        )
    _figure(report, workdir / "models.png", figures.models(result["models"]), _MODELS)


def _per_class(report: Report, workdir: Path, result: Mapping[str, Any]) -> None:
    report.heading("Class by class")
    report.table(*per_class_table(result))
    for model, comparison in result["per_class"].items():
        of_labels = result["evaluation"]["class_names"]
        names = [in_words(of_labels[label]) for label in comparison["classes"]]
        figure = figures.per_class(comparison, names)
        _figure(report, workdir / f"per_class_{model}.png", figure, f"{model}. {_PER_CLASS}")
        report.table(*extremes_table(comparison, names))


def _filters(report: Report, workdir: Path, result: Mapping[str, Any]) -> None:
    report.heading("Filters")
    report.table(*filters_table(result))
    _figure(report, workdir / "filters.png", figures.filters(result["filters"]), _FILTERS)


def _figure(report: Report, path: Path, figure: Figure, caption: str) -> None:
    png = image_grid.to_png(figure)
    write_atomic(path, png)
    report.png(png, caption)


def _arm(result: Mapping[str, Any], row: Mapping[str, Any]) -> Mapping[str, Any]:
    return result["arms"][row["model"]][row["arm"]]


def _scores(row: Mapping[str, Any], top5: bool, many: bool) -> list[str]:
    """Top-1, top-5 if measured; with deviations if there are several seeds."""
    scores = [percent(row["mean"], row["std"] if many else None)]
    if top5:
        scores.append(percent(row["top5_mean"], row["top5_std"] if many else None))
    return scores


def _short(parameters: int) -> str:
    """As in 25.6M."""
    if parameters >= 1e6:
        return f"{parameters / 1e6:.1f}M"
    return f"{parameters / 1e3:.1f}k" if parameters >= 1e3 else str(parameters)
