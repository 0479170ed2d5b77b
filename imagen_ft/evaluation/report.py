"""The results of an evaluation: a table for a terminal, JSON, and a page with pictures."""

import dataclasses
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from etils import epath
from jaxtyping import Int

from classifiers.extractors.extractor import Extractor
from imagen_ft.evaluation.image_sets import ImageSet
from imagen_ft.evaluation.measures import Measured, higher_is_better
from imagen_ft.evaluation.mosaic import mosaic
from imagen_ft.evaluation.references import References
from imagen_ft.metrics.result import Result, difference
from input_pipeline.imagenet import in_words
from input_pipeline.records.image_codec import encode_png
from input_pipeline.source import Source
from launch.cli import say
from launch.files import write_json
from launch.runtime.reports.html import Report
from launch.runtime.reports.tables import fitting_table

# Characters of a line on the terminal.
_WIDTH = 100
# Samples that the page shows of a set, samples a row, and classes that stand out, a row each.
_SAMPLES, _COLUMNS, _CLASSES = 40, 10, 3
# What classes are ordered by, and its field in the results.
_FIELDS = {"relative": "relative", "Frechet": "distance"}
# Rows of the table of classes; of more, the best and the worst halves.
_ROWS = 100


def write(
    workdir: epath.Path,
    config: ml_collections.ConfigDict,
    extractor: Extractor,
    sets: Sequence[ImageSet],
    references: References,
    measured: Mapping[str, Measured],
) -> None:
    """Writes evaluation.json and report.html, and prints the table."""
    # 1. What the table shows, and which of its numbers do not compare.
    header, rows = cells(measured)
    notes = differences({name: found.results for name, found in measured.items()})
    by_name = {images.name: images for images in sets}
    # 2. JSON: classes by name, and images by their keys in the sources.
    content = {
        "extractor": extractor.made_from,
        "sets": {
            name: {
                "results": [dataclasses.asdict(result) for result in found.results],
                "classes": {
                    by_name[name].source.class_names[label]: row
                    for label, row in found.classes.items()
                },
                "worst": [_named(row, by_name[name], references) for row in found.worst],
            }
            for name, found in measured.items()
        },
        "differences": notes,
    }
    write_json(workdir / "evaluation.json", content)
    # 3. The page: the table, warnings, then pictures set by set.
    page = Report("Images measured against real ones")
    page.text(
        f"Features: {extractor.name}, images by the rule '{extractor.rule}', weights "
        f"{extractor.digest[:12]}."
    )
    page.table(header, rows)
    for note in notes:
        page.verdict(note, good=False)
    if references.source is not None:
        _samples(page, references.source, "Real images")
    for images in sets:
        _section(page, images, references, measured[images.name])
    page.heading("What the numbers depend on")
    page.table(*_conditions(measured))
    page.write(workdir / "report.html")
    # 4. The terminal.
    print(f"\n{fitting_table(header, rows)}")
    for note in notes:
        print(textwrap.fill(f"note: {note}", _WIDTH, subsequent_indent=" " * len("note: ")))
    say(f"see {workdir / 'report.html'}", sys.stdout)


def shown(images: ImageSet, found: Measured) -> set[int]:
    """Positions of the images of a set that the page shows."""
    positions = [_of_samples(images), *_of_classes(images, found.classes).values()]
    return set(np.concatenate(positions).tolist()) | {int(row["image"]) for row in found.worst}


def cells(measured: Mapping[str, Measured]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of all sets."""
    # All sets have the same measures, so the first gives the header.
    first = next(iter(measured.values())).results
    header = ["set", "images", *(result.measure for result in first)]
    rows = []
    for name, found in measured.items():
        # Some measures take fewer images than the set has.
        count = f"{max(result.conditions.num_images for result in found.results):,}"
        rows.append([name, count, *(_text(result) for result in found.results)])
    return header, rows


def differences(results: Mapping[str, Sequence[Result]]) -> list[str]:
    """Why sets do not compare with the first one: a line for each set and reason."""
    (first, expected), *others = results.items()
    lines = []
    for name, found in others:
        measures: dict[str, list[str]] = {}
        for ours, theirs in zip(expected, found, strict=True):
            if reason := difference(ours, theirs):
                # One line for all measures with the same reason.
                measures.setdefault(reason, []).append(ours.measure.partition(" (")[0])
        lines += [
            f"{first} and {name} are not comparable in {', '.join(names)}: {reason}"
            for reason, names in measures.items()
        ]
    return lines


def _section(page: Report, images: ImageSet, references: References, found: Measured) -> None:
    _samples(page, images, images.name)
    if found.worst and references.source is not None:
        # Copies beside their originals: pairs of columns, with a wider gap between pairs.
        pairs = [
            (
                images.source[int(row["image"])]["image"],
                references.source.source[int(row["nearest"])]["image"],
            )
            for row in found.worst
        ]
        ratios = ", ".join(f"{row['ratio']:.2f}" for row in found.worst)
        picture = mosaic([image for pair in pairs for image in pair], min(8, 2 * len(pairs)), 2)
        caption = (
            f"{images.name}: most like copies, each with its nearest real image to its right; "
            f"their ratios: {ratios} (0 is a copy, 2 as far as any)."
        )
        page.png(encode_png(picture), caption)
    if found.classes:
        _classes(page, images, found.classes)


def _classes(page: Report, images: ImageSet, classes: dict[int, dict[str, float]]) -> None:
    names = [in_words(name) for name in images.source.class_names]
    # Ties have no best and worst: they are listed in the order of labels.
    measure, ordered = _ordered(classes)
    listed = ordered
    is_tie = _is_tie(classes)
    if is_tie:
        value = _number(classes[ordered[0]][_FIELDS[measure]])
        page.text(f"All {len(ordered)} classes tie: the {measure} distance of each is {value}.")
    if len(ordered) > _ROWS:
        half = _ROWS // 2
        listed = [*ordered[:half], *ordered[-half:]]
        ends = ("first", "last") if is_tie else ("best", "worst")
        page.text(f"Of {len(ordered)} classes the {half} {ends[0]} and the {half} {ends[1]}.")
    rows = [
        [
            names[label],
            f"{classes[label]['num_images']:,.0f}",
            _number(classes[label]["distance"]),
            _number(classes[label]["relative"]) if "relative" in classes[label] else "",
        ]
        for label in listed
    ]
    order = "class" if is_tie else "class, best first"
    page.table([order, "images", "Frechet distance", "relative"], rows)
    # A row of pictures for each class that stands out.
    for (title, labels), picks in _of_classes(images, classes).items():
        told = ", ".join(names[label] for label in labels)
        caption = f"{images.name}: the {title} classes by their {measure} distance: {told}."
        _picture(page, images.source, picks, len(picks) // len(labels), caption)


def _ordered(classes: dict[int, dict[str, float]]) -> tuple[str, list[int]]:
    # Relative distances are fairer to classes that vary much, but need all to have held-out images.
    measure = "relative" if all("relative" in row for row in classes.values()) else "Frechet"
    ordered = sorted(classes, key=lambda label: (classes[label][_FIELDS[measure]], label))
    return measure, ordered


def _is_tie(classes: dict[int, dict[str, float]]) -> bool:
    measure, ordered = _ordered(classes)
    # As when the measured images are the held-out ones: all relative distances are 1.
    values = [classes[label][_FIELDS[measure]] for label in ordered]
    return len(values) > 1 and bool(np.allclose(values, values[0], rtol=1e-6, atol=0))


def _of_classes(
    images: ImageSet, classes: dict[int, dict[str, float]]
) -> dict[tuple[str, tuple[int, ...]], Int[np.ndarray, " n"]]:
    """Positions of images of the best and the worst classes, in equal numbers; none if all tie."""
    _, ordered = _ordered(classes)
    few = 0 if _is_tie(classes) else min(_CLASSES, len(ordered) // 2)
    picks = {}
    for title, labels in (("best", ordered[:few]), ("worst", ordered[::-1][:few])):
        if labels:
            members = [np.flatnonzero(images.source.labels == label) for label in labels]
            # Equally many of each class, so that rows align.
            count = min(_COLUMNS, *map(len, members))
            rows = [_spread(positions, count) for positions in members]
            picks[title, tuple(labels)] = np.concatenate(rows)
    return picks


def _of_samples(images: ImageSet) -> Int[np.ndarray, " n"]:
    # Evenly spaced over the images sorted by class: as many classes as possible.
    return _spread(np.argsort(images.source.labels, kind="stable"), _SAMPLES)


def _samples(page: Report, images: ImageSet, title: str) -> None:
    page.heading(title)
    caption = f"Samples of {len(images.source):,} images."
    _picture(page, images.source, _of_samples(images), _COLUMNS, caption)


def _picture(
    page: Report, source: Source, positions: Int[np.ndarray, " n"], columns: int, caption: str
) -> None:
    pictures = [source[int(i)]["image"] for i in positions]
    page.png(encode_png(mosaic(pictures, min(columns, len(pictures)))), caption)


def _spread(positions: Int[np.ndarray, " n"], count: int) -> Int[np.ndarray, " m"]:
    """At most `count` positions, evenly spaced."""
    chosen = np.linspace(0, len(positions) - 1, min(count, len(positions)))
    return positions[chosen.round().astype(int)]


def _named(row: dict[str, float], images: ImageSet, references: References) -> dict[str, Any]:
    assert references.source is not None
    # Positions change with the choice of images, keys do not.
    keys = {
        "image": images.source.key(int(row["image"])),
        "nearest": references.source.source.key(int(row["nearest"])),
    }
    return row | keys


def _conditions(measured: Mapping[str, Measured]) -> tuple[list[str], list[list[str]]]:
    header = ["set", "measure", "value", "deviation", "better", "images", "of classes", "files"]
    header += ["real files", "uint8", "k", "settings", "reference"]
    rows = []
    for name, found in measured.items():
        for result in found.results:
            where = result.conditions
            better = "higher" if higher_is_better(result.measure) else "lower"
            row = [name, result.measure, _number(result.value)]
            row += ["" if result.deviation is None else _number(result.deviation), better]
            row += [f"{where.num_images:,}", where.class_balance, where.file_format]
            row += [where.reference_file_format or "", where.uint8_rule]
            row.append("" if where.k is None else f"{where.k} ({where.comparison})")
            row.append(" ".join(f"{key}={_short(str(value))}" for key, value in where.settings))
            rows.append([*row, _short(where.reference_digest or "")])
    return header, rows


def _text(result: Result) -> str:
    deviation = "" if result.deviation is None else f" ± {_number(result.deviation)}"
    return f"{_number(result.value)}{deviation}"


def _number(value: float) -> str:
    """Four digits, as papers print them."""
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.1f}"


def _short(digest: str) -> str:
    # 12 of a SHA-256's 64 digits are enough to identify it.
    return digest[:12] if len(digest) == 64 else digest
