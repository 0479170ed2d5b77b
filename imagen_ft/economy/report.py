"""The report: accuracy against evaluations of the networks, as a table and a figure."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter

from imagen_ft.economy.results import LEVEL, cheapest
from launch.files import write_json
from launch.runtime.reports import image_grid
from launch.runtime.reports.html import Report
from launch.runtime.reports.tables import percent, points, text_table

HEADER = [
    "arm",
    "by stage",
    "evaluations",
    "share",
    "accuracy (%)",
    "difference",
    "90% interval",
    "p of equivalence",
]


def write(workdir: Path, name: str, result: dict[str, Any]) -> None:
    """Writes worth.json, worth.png and report.html."""
    figure = draw(result)
    image_grid.save_png(figure, workdir / "worth.png")
    write_json(workdir / "worth.json", result)
    report = Report(f"What images are worth, by how they were sampled: {name}")
    report.verdict(*verdict(result))
    report.text(
        f"Each classifier saw the images of one arm only, {len(result['real'])} seeds each; on the "
        f"real images alone they reach {percent(np.mean(result['real']))}%. Evaluations are "
        "network evaluations per image, including those for guidance. The test of equivalence: "
        "two one-sided t-tests over pairs of seeds."
    )
    report.table(HEADER, rows(result))
    report.figure(
        figure,
        "Accuracy against evaluations. Bars: intervals of 90% of the difference from the "
        "reference; an interval within the band counts as equally good.",
    )
    report.write(workdir / "report.html")


def verdict(result: dict[str, Any]) -> tuple[str, bool]:
    """The fewest evaluations as good as the reference, in a sentence, and whether there are any."""
    first, best = result["arms"][0], cheapest(result)
    margin = f"{100 * result['margin']:g} point{'s' * (result['margin'] != 0.01)}"
    if best is first:
        return (
            f"No arm with fewer evaluations than {first['evaluations']} is within {margin} "
            f"of these (p < {LEVEL}).",
            False,
        )
    return (
        f"{best['evaluations']} evaluations ({best['name']}) are as good as "
        f"{first['evaluations']}: within {margin}, {points(best['difference'])} "
        f"(p = {best['p_equivalent']:.2g}); {first['evaluations'] / best['evaluations']:.1f} times "
        "fewer.",
        True,
    )


def rows(result: dict[str, Any]) -> list[list[str]]:
    """The cells of the table, a row for each arm."""
    whole = result["arms"][0]["evaluations"]
    return [
        [
            row["name"],
            " + ".join(map(str, row["by_stage"])),
            str(row["evaluations"]),
            f"1/{whole / row['evaluations']:.3g}",
            percent(row["mean"], row["std"]),
            points(row["difference"]),
            f"{points(row['low'])} to {points(row['high'])}",
            "" if row is result["arms"][0] else f"{row['p_equivalent']:.2g}",
        ]
        for row in result["arms"]
    ]


def table(result: dict[str, Any]) -> str:
    """The table for a terminal."""
    return text_table(HEADER, rows(result), rule=True)


def draw(result: dict[str, Any]) -> Figure:
    """Accuracy against evaluations, a line for each kind of arm."""
    # 1. The reference, with the band in which others count as equally good.
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    first, *others = result["arms"]
    axes.axhline(100 * first["mean"], color="gray", lw=1)
    axes.plot(first["evaluations"], 100 * first["mean"], "o", color="gray")
    low, high = (100 * (first["mean"] + sign * result["margin"]) for sign in (-1, 1))
    label = f"{first['evaluations']} evaluations, ± {100 * result['margin']:g} points"
    axes.axhspan(low, high, color="gray", alpha=0.15, lw=0, label=label)
    # 2. A line for each kind; bars are half of the interval of the difference.
    for kind in dict.fromkeys(row["kind"] for row in others):
        own = sorted((r for r in others if r["kind"] == kind), key=lambda r: r["evaluations"])
        x, mean = ([row[key] for row in own] for key in ("evaluations", "mean"))
        spread = [100 * (row["high"] - row["low"]) / 2 for row in own]
        axes.errorbar(x, 100 * np.asarray(mean), spread, marker="o", capsize=3, label=kind)
    # 3. What real images reach, and the axes.
    axes.axhline(100 * np.mean(result["real"]), color="black", lw=1, ls="--", label="real alone")
    axes.set(xlabel="network evaluations per image", ylabel="accuracy (%)", xscale="log")
    # Ticks at the arms: the powers of ten of a logarithmic axis would hit none of them.
    axes.set_xticks(sorted({row["evaluations"] for row in result["arms"]}))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure
