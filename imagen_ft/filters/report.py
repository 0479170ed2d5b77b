"""The outputs of a filter: lists of records, a table, JSON, and a page with pictures."""

import csv
import io
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Bool, Int

from imagen_ft.evaluation.image_sets import ImageSet
from imagen_ft.evaluation.mosaic import mosaic
from imagen_ft.filters.from_config import Filter
from imagen_ft.filters.judging import Judged, OfClasses
from input_pipeline.imagenet import in_words
from input_pipeline.records.image_codec import encode_png
from launch.cli import say
from launch.files import write_atomic, write_json
from launch.runtime.reports.html import Report
from launch.runtime.reports.tables import fitting_table, percent

KEPT, RANDOM, RECORDS, SUMMARY, PAGE = (
    "kept.json",
    "random.json",
    "records.csv",
    "filter.json",
    "report.html",
)
# Classes on the page and in the terminal; of more, those that keep least and most.
_CLASSES = 20


def write(
    workdir: epath.Path,
    synthetic: ImageSet,
    filters: Sequence[Filter],
    judged: Judged,
    measured: Mapping[str, OfClasses],
    made_from: Mapping[str, Any],
    num_shown: int,
) -> None:
    """Writes kept.json and random.json, records.csv, filter.json and report.html; prints a table.

    `measured` is what `judging.neighbourhoods_of_classes` gives, empty without real images;
    `made_from` is all that the result depends on; `num_shown` is pictures of the best and of the
    worst of each class.
    """
    # 1. Remove old lists first and write new ones last: a list that is there belongs to the files
    # beside it, even after an interruption.
    for name in (KEPT, RANDOM):
        (workdir / name).unlink(missing_ok=True)
    # 2. A table of all scores, and a summary.
    keys = [synthetic.source.key(i) for i in range(len(synthetic.source))]
    write_atomic(workdir / RECORDS, _records(keys, synthetic, filters, judged))
    header, rows = _classes(synthetic, filters, judged, measured)
    summary = {
        **made_from,
        "images": len(keys),
        "kept": int(judged.kept.sum()),
        "filters": {
            one.name: {"rule": one.describe(), "passing": int(judged.passing[one.name].sum())}
            for one in filters
        },
        "classes": [dict(zip(header, row, strict=True)) for row in rows],
    }
    write_json(workdir / SUMMARY, summary)
    # 3. Pages and lists.
    _page(workdir / PAGE, synthetic, filters, judged, (header, rows), num_shown)
    for name, part in ((RANDOM, judged.random), (KEPT, judged.kept)):
        write_json(workdir / name, [keys[i] for i in np.flatnonzero(part)])
    # 4. The terminal.
    print(f"\n{fitting_table(*_of_filters(filters, judged))}")
    if len(rows) <= _CLASSES:
        print(f"\n{fitting_table(header, rows)}")
    say(f"{_told(judged)}: keep={workdir / KEPT}; see {workdir / PAGE}", sys.stdout)


def _told(judged: Judged) -> str:
    kept, count = int(judged.kept.sum()), len(judged.kept)
    return f"{kept:,} of {count:,} images are kept ({percent(kept / count)}%)"


def _records(
    keys: Sequence[str], synthetic: ImageSet, filters: Sequence[Filter], judged: Judged
) -> bytes:
    # A line for each image, with all scores.
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    names = [one.name for one in filters]
    table.writerow(
        ["key", "class", *names, *(f"passes {name}" for name in names), "kept", "random"]
    )
    for i, key in enumerate(keys):
        scores = [f"{judged.scores[name][i]:.6g}" for name in names]
        passes = [int(judged.passing[name][i]) for name in names]
        label = synthetic.source.class_names[synthetic.source.labels[i]]
        table.writerow([key, label, *scores, *passes, int(judged.kept[i]), int(judged.random[i])])
    # File names need not be UTF-8: Python keeps their odd bytes as surrogates.
    return text.getvalue().encode("utf-8", "surrogateescape")


def _of_filters(filters: Sequence[Filter], judged: Judged) -> tuple[list[str], list[list[str]]]:
    """A row for each filter, and one for all together."""
    header, count = ["filter", "rule", "images", "share (%)"], len(judged.kept)
    parts = [(one.name, one.describe(), judged.passing[one.name]) for one in filters]
    rows = [
        [name, rule, f"{int(part.sum()):,}", percent(part.mean())]
        for name, rule, part in [*parts, ("kept", f"of {count:,}", judged.kept)]
    ]
    return header, rows


def _classes(
    synthetic: ImageSet,
    filters: Sequence[Filter],
    judged: Judged,
    measured: Mapping[str, OfClasses],
) -> tuple[list[str], list[list[str]]]:
    """A row for each class: how much is kept, mean scores, recall and coverage."""
    header = ["class", "images", "kept", "share (%)", *(f"mean {one.name}" for one in filters)]
    header += [f"{measure}, {part}" for measure, parts in measured.items() for part in parts]
    rows = []
    labels = synthetic.source.labels
    for label in np.unique(labels).tolist():
        members = labels == label
        kept = int(judged.kept[members].sum())
        row = [
            in_words(synthetic.source.class_names[label]),
            f"{int(members.sum()):,}",
            f"{kept:,}",
        ]
        row.append(percent(kept / members.sum()))
        row += [f"{judged.scores[one.name][members].mean():.3g}" for one in filters]
        for parts in measured.values():
            values = (of_label.get(label) for of_label in parts.values())
            row += ["" if value is None else f"{value:.3f}" for value in values]
        rows.append(row)
    return header, rows


def _page(
    path: epath.Path,
    synthetic: ImageSet,
    filters: Sequence[Filter],
    judged: Judged,
    classes: tuple[list[str], list[list[str]]],
    num_shown: int,
) -> None:
    page = Report("Which images are kept")
    page.verdict(f"{_told(judged)}.", good=True)
    page.table(*_of_filters(filters, judged))
    for one in filters:
        # Inception may have no path.
        network = f"{one.extractor.name} {one.extractor.get('path') or ''}".strip()
        page.text(f"{one.name}: {one.kind.meaning}, by {network}.")
    labels = synthetic.source.labels
    # A class that loses everything is easy to miss in a long table.
    emptied = [
        label for label in np.unique(labels).tolist() if not judged.kept[labels == label].any()
    ]
    if emptied:
        names = ", ".join(in_words(synthetic.source.class_names[label]) for label in emptied[:10])
        page.verdict(f"{len(emptied)} classes lose all their images: {names}.", good=False)
    page.heading("Classes")
    page.table(*classes)
    page.heading("The best and the worst of each class")
    for label in _shown(labels, judged.kept):
        _pictures(page, synthetic, judged, label, num_shown)
    page.write(path)


def _shown(labels: Int[np.ndarray, " n"], kept: Bool[np.ndarray, " n"]) -> list[int]:
    # All labels; of too many, those that keep least and those that keep most.
    present = np.unique(labels).tolist()
    if len(present) <= _CLASSES:
        return present
    ordered = sorted(present, key=lambda label: kept[labels == label].mean())
    half = _CLASSES // 2
    return [*ordered[:half], *ordered[-half:]]


def _pictures(
    page: Report, synthetic: ImageSet, judged: Judged, label: int, num_shown: int
) -> None:
    """A row of the best images of a class, and one of the worst."""
    members = np.flatnonzero(synthetic.source.labels == label)
    order = members[np.argsort(-judged.goodness[members], kind="stable")]
    count = min(num_shown, len(order))
    # The worst comes first in its row.
    best, worst = order[:count], order[-count:][::-1]
    images = [synthetic.source[int(i)]["image"] for i in (*best, *worst)]
    kept = int(judged.kept[members].sum())
    caption = (
        f"{in_words(synthetic.source.class_names[label])}: the best above, the worst below; "
        f"{kept:,} of {len(members):,} are kept."
    )
    page.png(encode_png(mosaic(images, count)), caption)
