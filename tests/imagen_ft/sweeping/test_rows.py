"""Which point of a sweep is best, where higher and where lower values are better."""

import pytest

from imagen_ft.evaluation.measures import Measured, higher_is_better
from imagen_ft.metrics.result import Conditions, Result
from imagen_ft.sweeping import rows

CONDITIONS = Conditions(*["any"] * 6, num_images=100, class_balance="", reference_digest=None)


def row(name, results, accuracy):
    found = [Result(result, value, CONDITIONS) for result, value in results.items()]
    return rows.Row(name, {}, 4, 100, True, Measured(found, {}, []), rows.Score(accuracy, 0.0))


@pytest.mark.parametrize("suffix", ["", " (of a classifier)"])  # Inception has none
def test_the_best_is_the_highest_score_or_the_shortest_distance(suffix):
    distance = f"fd{suffix}" if suffix else "fid"
    found = [
        row("a", {distance: 3.0, f"is{suffix}": 9.0}, 0.5),
        row("b", {distance: 2.0, f"is{suffix}": 5.0}, 0.9),
        row("c", {distance: float("nan"), f"is{suffix}": 7.0}, 0.1),
    ]
    assert [higher_is_better(result.measure) for result in found[0].measured.results] == [0, 1]
    order = lambda measure: "".join(row.name for row in rows.best_first(found, measure))  # noqa: E731
    assert order("frechet") == "bac"
    assert order("inception_score") == "acb"
    assert order(rows.CAS) == "bac"
    front = rows.pareto_front(found, "frechet", "inception_score")
    assert [row.name for row in front] == ["b", "a"]
