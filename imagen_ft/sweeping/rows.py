"""Results of the points of a sweep, and which of them is best."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from etils import epath

from imagen_ft.evaluation import measures
from imagen_ft.evaluation.measures import NAMES, Measured
from imagen_ft.metrics.result import Result

CAS = "cas"
# Measures that points can be chosen by.
CHOICES = (*NAMES, CAS)


@dataclasses.dataclass(frozen=True)
class Score:
    """Accuracy of classifiers trained on a point's images alone, in [0, 1], over seeds."""

    mean: float
    std: float


@dataclasses.dataclass(frozen=True)
class Row:
    """A point with its latest results."""

    name: str
    # See `Point`.
    values: dict[str, Any]
    evaluations: int
    images: int  # that it was measured on
    is_final: bool  # whether it reached the last round
    measured: Measured | None  # None if its images are not finite numbers
    score: Score | None = None  # None until its classifiers are trained

    def to_json(self) -> dict[str, Any]:
        """For a file; without the score, which has files of its own."""
        fields = dataclasses.asdict(self) | {
            "measured": self.measured.to_json() if self.measured else None
        }
        del fields["score"]
        return fields

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Row":
        """The inverse of `to_json`."""
        measured = content["measured"]
        return cls(**{**content, "measured": Measured.from_json(measured) if measured else None})


def point_folder(workdir: epath.Path, name: str) -> epath.Path:
    """The folder with all files of a point."""
    return workdir / "points" / name


def result_of(row: Row, measure: str) -> Result | None:
    """The result of a measure, if it was taken."""
    # 'fd (NAME)' on other extractors than Inception.
    for result in row.measured.results if row.measured else ():
        if result.measure.partition(" (")[0] in NAMES[measure]:
            return result
    return None


def value_of(row: Row, measure: str) -> float:
    """The value of a measure of `CHOICES`; NaN if it was not taken."""
    if measure == CAS:
        return row.score.mean if row.score else math.nan
    result = result_of(row, measure)
    return math.nan if result is None else result.value


def label_of(rows: Sequence[Row], measure: str) -> str:
    """The name of a measure of `CHOICES` on this extractor: 'fid' on Inception alone."""
    if measure == CAS:
        return "CAS (%)"
    names = (result_of(row, measure) for row in rows)
    return next((result.measure for result in names if result), measure)


def higher_is_better(measure: str) -> bool:
    """Whether higher values of a measure of `CHOICES` are better."""
    return measure == CAS or measures.higher_is_better(NAMES[measure][0])


def best_first(rows: Sequence[Row], measure: str) -> list[Row]:
    """Rows sorted by a measure of `CHOICES`; rows without it come last, ties keep their order."""
    sign = -1.0 if higher_is_better(measure) else 1.0

    def key(row: Row) -> tuple[bool, float]:
        value = value_of(row, measure)
        # NaN does not sort: it goes last, as infinity.
        return math.isnan(value), sign * value if math.isfinite(value) else math.inf

    return sorted(rows, key=key)


def best(rows: Sequence[Row], measure: str) -> Row | None:
    """The best row of the last round; None if none has the measure."""
    final = [row for row in rows if row.is_final and not math.isnan(value_of(row, measure))]
    return best_first(final, measure)[0] if final else None


def pareto_front(rows: Sequence[Row], first: str, second: str) -> list[Row]:
    """Rows that no other one beats in both measures, sorted by the first."""
    # In the order of the first measure, each row of the front must improve the second.
    front: list[Row] = []
    for row in best_first(rows, first):
        value = value_of(row, second)
        if math.isnan(value) or math.isnan(value_of(row, first)):
            continue
        limit = value_of(front[-1], second) if front else None
        better = limit is None or (value > limit if higher_is_better(second) else value < limit)
        if better:
            front.append(row)
    return front
