"""Tables and the picture."""

import re

import pytest

from classifiers.evaluation import report

BINS = {"count": [0, 5, 5], "confidence": [0.0, 2.5, 4.5], "correct": [0, 2, 5]}


def an_arm(mean, std, p_value, seeds, **more):
    return dict(
        accuracies=[mean] * seeds,
        mean=mean,
        std=std,
        p_value=p_value,
        top5=[0.9] * seeds,
        loss=[0.5, 0.7] + [0.6] * (seeds - 2),
        calibration_error=[0.031] * seeds,
        calibration=BINS,
        attacks={},
        **more,
    )


def a_result(name="test", **more):
    arms = {
        "real": an_arm(0.8, 0.0123, None, 2, **more),
        "real+synthetic": an_arm(0.905, 0.01, 1.234e-5, 5, **more),
    }
    return dict(name=name, num_images=12345, class_names=["a"] * 3, baseline="real", arms=arms)


def test_numbers_are_in_their_order():
    arms = ["real+synthetic_10x", "real", "real+synthetic_1x", "synthetic", "real+synthetic_2x"]
    expected = ["real", *(f"real+synthetic_{k}x" for k in (1, 2, 10)), "synthetic"]
    assert report.in_order(arms) == expected
    result = a_result()
    result["arms"] = dict.fromkeys(arms, result["arms"]["real"])
    assert [line.split()[0] for line in report.table(result).splitlines()[2:]] == expected
    figure = report.picture({"test": result})
    figure.draw_without_rendering()
    for axes in figure.axes:
        legend = axes.get_legend()
        assert [text.get_text().split(" ")[0] for text in legend.get_texts()] == expected
        for covered in (axes.get_window_extent(), axes.xaxis.get_tightbbox()):
            assert not legend.get_window_extent().overlaps(covered)


def test_table():
    title, header, *rows = report.table(a_result()).split("\n")
    assert title == "test: 12,345 images, 3 classes"
    columns = ["arm", "top-1 (%)", "top-5 (%)", "loss", "ECE (%)", "seeds", "p against real"]
    assert re.split(r" {2,}", header) == columns
    assert rows[0].split() == ["real", "80.00", "±", "1.23", "90.00", "0.600", "3.10", "2"]
    expected = ["real+synthetic", "90.50", "±", "1.00", "90.00", "0.600", "3.10", "5", "1.2e-05"]
    assert rows[1].split() == expected
    # Columns end together.
    assert header.index("top-1 (%)") + len("top-1 (%)") - 1 == rows[0].index("1.23") + 3
    assert len(rows[1]) == len(header)


def test_table_of_shots_and_attacks():
    result = a_result(many=0.9, medium=0.5, few=None)
    for arm in result["arms"].values():
        arm["attacks"] = {"pgd_4": dict(mean=0.1, std=0.02)}
    _, header, row, _ = report.table(result).split("\n")
    assert "many (%)  medium (%)  few (%)     pgd_4 (%)" in header
    assert row.split()[7:9] == ["90.00", "50.00"] and "10.00 ± 2.00" in row


def test_overview():
    lines = report.overview({"val": a_result("val"), "v2": a_result("v2")}).split("\n")
    assert [line.split() for line in lines] == [
        ["top-1", "(%)", "val", "v2"],
        ["real", "80.00", "80.00"],
        ["real+synthetic", "90.50", "90.50"],
    ]


@pytest.mark.parametrize("count", [1, 2, 6])
def test_picture(count):
    results = {f"set {k}": a_result(f"set {k}") for k in range(count)}
    first, *others = [axes for axes in report.picture(results).axes if axes.axison]
    assert [patch.get_height() for patch in first.patches] == [80.0] * count + [90.5] * count
    assert len(others) == count
    # The numbers of many bars would hide each other.
    numbers = ["80.0"] * count + ["90.5"] * count
    assert [text.get_text() for text in first.texts] == (numbers if count < 5 else [])
    for axes in others:
        curve = axes.get_lines()[1]
        # Bins without images are not drawn.
        assert curve.get_xdata().tolist() == [0.5, 0.9] and curve.get_ydata().tolist() == [0.4, 1]
        assert curve.get_label() == "real (ECE 3.1%)"
