"""What was found at each point, and which of them is best."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from etils import epath

from imagen_ft.evaluation.measures import NAMES, Measured
from imagen_ft.metrics.result import Result

CAS = "cas"
# What points can be chosen by.
CHOICES = (*NAMES, CAS)
_HIGHER_IS_BETTER = ("inception_score", CAS)


@dataclasses.dataclass(frozen=True)
class Score:
    """Accuracy of classifiers that were trained on a point's images alone.

    Attributes:
        mean: over seeds, in [0, 1].
        std: over seeds.
    """

    mean: float
    std: float


@dataclasses.dataclass(frozen=True)
class Row:
    """A point as it was measured last.

    Attributes:
        name: of the point.
        values: see `Point`.
        evaluations: see `Point`.
        images: that it was measured on.
        is_final: whether it was among those that are compared in the end.
        measured: None where its images are not finite numbers.
        score: None where it was not asked for, or is not there yet.
    """

    name: str
    values: dict[str, Any]
    evaluations: int
    images: int
    is_final: bool
    measured: Measured | None
    score: Score | None = None

    def to_json(self) -> dict[str, Any]:
        """For a file; without the score."""
        fields = dataclasses.asdict(self) | {
            "measured": self.measured.to_json() if self.measured else None
        }
        del fields["score"]
        return fields

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Row":
        """What `to_json` gave, after a file."""
        measured = content["measured"]
        return cls(**{**content, "measured": Measured.from_json(measured) if measured else None})


def point_folder(workdir: epath.Path, name: str) -> epath.Path:
    """Where all of a point is."""
    return workdir / "points" / name


def result_of(row: Row, measure: str) -> Result | None:
    """The result of a measure, if it was taken."""
    for result in row.measured.results if row.measured else ():
        if result.measure.partition(" (")[0] in NAMES[measure]:
            return result
    return None


def value_of(row: Row, measure: str) -> float:
    """Of a measure of `CHOICES`; NaN where there is none."""
    if measure == CAS:
        return row.score.mean if row.score else math.nan
    result = result_of(row, measure)
    return math.nan if result is None else result.value


def label_of(rows: Sequence[Row], measure: str) -> str:
    """How a measure of `CHOICES` is called honestly: 'fid' on Inception alone."""
    if measure == CAS:
        return "CAS (%)"
    names = (result_of(row, measure) for row in rows)
    return next((result.measure for result in names if result), measure)


def higher_is_better(measure: str) -> bool:
    """Whether more of a measure of `CHOICES` is better."""
    return measure in _HIGHER_IS_BETTER


def best_first(rows: Sequence[Row], measure: str) -> list[Row]:
    """Rows by a measure of `CHOICES`; those without it come last, ties stay as they are."""
    sign = -1.0 if higher_is_better(measure) else 1.0

    def key(row: Row) -> tuple[bool, float]:
        value = value_of(row, measure)
        return math.isnan(value), sign * value if math.isfinite(value) else math.inf

    return sorted(rows, key=key)


def best(rows: Sequence[Row], measure: str) -> Row | None:
    """The best of those that are compared in the end; None where the measure is of none."""
    final = [row for row in rows if row.is_final and not math.isnan(value_of(row, measure))]
    return best_first(final, measure)[0] if final else None


def pareto_front(rows: Sequence[Row], first: str, second: str) -> list[Row]:
    """Rows that no other one beats in both measures, the best of the first one first."""
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
