"""The outputs of a sweep: sweep.csv, figures, report.html, and the best setting as a config."""

import csv
import dataclasses
import io
import sys
from collections.abc import Sequence
from typing import Any

import ml_collections
from etils import epath

from imagen_ft.evaluation.report import differences
from imagen_ft.sweeping import best as best_file
from imagen_ft.sweeping import figures, trained
from imagen_ft.sweeping.grid import Point, text
from imagen_ft.sweeping.rows import CAS, Row, best, best_first, label_of, point_folder, value_of
from launch.cli import say
from launch.errors import InputError
from launch.files import json_digest, read_sealed, write_atomic, write_sealed
from launch.runtime.config import plain
from launch.runtime.reports.html import Report
from launch.runtime.reports.image_grid import to_png
from launch.runtime.reports.tables import text_table

FOUND, TABLE, PAGE = "sweep.json", "sweep.csv", "report.html"
# Rows of the tables on the page and in the terminal, and points whose samples are shown.
_LISTED, _SHOWN = 20, 6


def keep(workdir: epath.Path, config: ml_collections.ConfigDict, rows: Sequence[Row]) -> None:
    """Writes all rows to `FOUND`, for `--cas` and later reports."""
    content = {"sweep": _origin(config), "rows": [row.to_json() for row in rows]}
    write_sealed(workdir / FOUND, content)


def kept(workdir: epath.Path, config: ml_collections.ConfigDict) -> list[Row]:
    """The rows that `keep` wrote; raises `InputError` if there are none, or of another config."""
    if not (workdir / FOUND).exists():
        raise InputError(f"{workdir} has no finished sweep; run the same command without --cas")
    content = read_sealed(workdir / FOUND)
    if content.get("sweep") != _origin(config):
        raise InputError(
            f"{workdir} has a sweep of another config; run the same command without --cas first"
        )
    return [Row.from_json(row) for row in content["rows"]]


def write(
    workdir: epath.Path,
    config: ml_collections.ConfigDict,
    points: Sequence[Point],
    rows: Sequence[Row],
) -> None:
    """Writes all outputs, and prints the best points; rows are one for each point."""
    # 1. Add the classifiers' scores that are there by now, and choose.
    scores = trained.read_scores(config, workdir, [row.name for row in rows if row.is_final])
    rows = [dataclasses.replace(row, score=scores.get(row.name)) for row in rows]
    chosen = best(rows, config.choose_by)
    # 2. Files.
    write_atomic(workdir / TABLE, _csv(list(config.grid), rows, chosen).encode())
    if chosen is not None:
        _write_best(workdir, config, points, rows, chosen)
    _page(workdir, config, rows, chosen)
    # 3. The terminal.
    header, lines = _listed(config, rows)
    print(f"\n{text_table(header, lines, rule=True)}")
    if chosen is None:
        say(f"no best point yet: none has {config.choose_by!r}", sys.stdout)
    else:
        say(f"best: {chosen.name}, see {workdir / best_file.FILE}", sys.stdout)


def _origin(config: ml_collections.ConfigDict) -> str:
    # What the rows do not depend on: how they are scored and chosen, and how fast they were made.
    outside = ("cas", "choose_by", "batch_size", "num_shown")
    fields = {name: value for name, value in plain(config).items() if name not in outside}
    return json_digest(fields)


def _write_best(
    workdir: epath.Path,
    config: ml_collections.ConfigDict,
    points: Sequence[Point],
    rows: Sequence[Row],
    chosen: Row,
) -> None:
    point = next(point for point in points if point.name == chosen.name)
    label = label_of(rows, config.choose_by)
    values = ", ".join(f"{name} {text(value)}" for name, value in chosen.values.items())
    best_file.write(
        workdir / best_file.FILE,
        point.config,
        f"The best setting of stage {config.stage}: {values}.",
        f"{label} is {value_of(chosen, config.choose_by):.6g} on {chosen.images:,} images, the "
        f"best of {sum(row.is_final for row in rows)} points with that many.",
    )


def _csv(dimensions: Sequence[str], rows: Sequence[Row], chosen: Row | None) -> str:
    """All numbers of all points; points that were dropped early have fewer images and measures."""
    names = list(
        dict.fromkeys(
            result.measure
            # final rows first: only they have all measures
            for row in sorted(rows, key=lambda row: not row.is_final)
            for result in (row.measured.results if row.measured else ())
        )
    )
    # A column of deviations only for measures that have them.
    deviated = [name for name in names if any(_deviation(row, name) is not None for row in rows)]
    scored = any(row.score for row in rows)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    header = [*dimensions, "evaluations", "images", *names, *(f"{n} deviation" for n in deviated)]
    writer.writerow([*header, *(["cas", "cas deviation"] if scored else []), "best"])
    for row in rows:
        results = {r.measure: r for r in (row.measured.results if row.measured else ())}
        cells: list[Any] = [text(row.values[d]) if d in row.values else "" for d in dimensions]
        cells += [row.evaluations, row.images]
        # Full precision: tables are read by programs.
        cells += [repr(results[name].value) if name in results else "" for name in names]
        cells += [_blank(_deviation(row, name)) for name in deviated]
        if scored:
            cells += [row.score.mean, row.score.std] if row.score else ["", ""]
        writer.writerow([*cells, "*" if row is chosen else ""])
    return buffer.getvalue()


def _deviation(row: Row, name: str) -> float | None:
    results = row.measured.results if row.measured else ()
    return next((r.deviation for r in results if r.measure == name), None)


def _blank(value: float | None) -> str:
    return "" if value is None else repr(value)


def _listed(
    config: ml_collections.ConfigDict, rows: Sequence[Row]
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of the best points."""
    final = best_first([row for row in rows if row.is_final], config.choose_by)[:_LISTED]
    results = next((row.measured.results for row in final if row.measured), [])
    scored = any(row.score for row in final)
    header = ["point", "images", *(result.measure for result in results)]
    header += ["CAS (%)"] if scored else []
    lines = []
    for row in final:
        line = [row.name, f"{row.images:,}"]
        if row.measured is None:
            # The images were not finite, so there are no numbers.
            line += ["not finite"] * len(results)
        else:
            line += [f"{result.value:.4g}" for result in row.measured.results]
        if scored:
            score = row.score
            line.append(f"{100 * score.mean:.2f} ± {100 * score.std:.2f}" if score else "")
        lines.append(line)
    return header, lines


def _page(
    workdir: epath.Path,
    config: ml_collections.ConfigDict,
    rows: Sequence[Row],
    chosen: Row | None,
) -> None:
    # 1. What is best, and the table. Rows of earlier rounds have fewer images: they do not compare.
    final = [row for row in rows if row.is_final]
    page = Report(f"How stage {config.stage} is sampled best")
    label = label_of(rows, config.choose_by)
    if chosen is not None:
        value = value_of(chosen, config.choose_by)
        page.verdict(f"Best by {label} ({value:.4g}): {chosen.name}.", good=True)
    page.text(
        f"{len(rows)} points; {len(final)} of them have {final[0].images:,} images each, and are "
        "compared. Results on other numbers of images cannot be compared with them."
    )
    page.table(*_listed(config, rows))
    # 2. Warnings about numbers that do not compare.
    measured = {row.name: row.measured.results for row in final if row.measured}
    for note in differences(measured)[:_LISTED] if measured else ():
        page.verdict(note, good=False)
    # 3. Figures, also as files.
    for name, figure, caption in _figures(config, final):
        png = to_png(figure)
        write_atomic(workdir / f"{name}.png", png)
        page.png(png, caption)
    # 4. Samples of the best points, and of the two worst for contrast.
    page.heading("Samples")
    page.text("The same classes and the same noise at every point.")
    ordered = best_first(final, config.choose_by)
    for row in [*ordered[:_SHOWN], *ordered[_SHOWN:][-2:]]:
        picture = point_folder(workdir, row.name) / "samples.png"
        if picture.exists():
            page.png(picture.read_bytes(), row.name)
    page.write(workdir / PAGE)


def _figures(config: ml_collections.ConfigDict, rows: Sequence[Row]) -> list[tuple[str, Any, str]]:
    """Name, figure and caption of all that can be drawn (Azizi et al. 2023, Figures 3 and 4)."""
    along, lines = figures.axes_of(config.grid)
    others = [name for name in config.grid if name not in (along, lines)]
    rest = f" Best over {', '.join(others)}." if others else ""
    # Beside CAS stands a measure of images: FID if there is one, as in the paper.
    measure = config.choose_by if config.choose_by != CAS else config.halving.measure
    measure = "frechet" if "frechet" in config.measures else measure
    drawn = [
        (
            f"{measure}_against_{along}",
            figures.against(rows, along, lines, measure) if along else None,
            f"{label_of(rows, measure)} against {along}, one line per {lines or 'grid'}.{rest}",
        ),
        (
            f"{measure}_against_inception_score",
            figures.trade_off(rows, measure, "inception_score"),
            f"{label_of(rows, measure)} against {label_of(rows, 'inception_score')}.",
        ),
        (
            f"cas_against_{along}",
            figures.against(rows, along, lines, CAS) if along else None,
            f"CAS against {along}.{rest}",
        ),
        (
            f"{measure}_against_cas",
            figures.trade_off(rows, measure, CAS),
            f"{label_of(rows, measure)} against CAS.",
        ),
    ]
    return [(name, figure, caption) for name, figure, caption in drawn if figure is not None]
