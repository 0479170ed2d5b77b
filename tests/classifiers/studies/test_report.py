"""The page, the tables and the figures say what a study's numbers say."""

import json
import re

import cv2
import numpy as np
import pytest

from classifiers.studies import figures, report, results
from input_pipeline.imagenet import wordnet_ids
from launch.runtime.reports import plots
from tests.support.study_results import TABLE_3, arms_of, of_the_paper

NAMES = ("real", "synthetic_1x", "real+synthetic_1x")


def scaled(seeds=10, level=0.76):
    """Accuracies of ResNet-50 by copies, up and down again."""
    rng = np.random.default_rng(0)
    gains = [0, 0.012, 0.01, 0.006, 0.002, -0.002, -0.006, -0.01, -0.013, -0.016, -0.02]
    return {
        ("real" if not k else f"real+synthetic_{k}x"): level + gain + rng.normal(0, 0.002, seeds)
        for k, gain in enumerate(gains)
    }


def by_class(classes, seed=0):
    rng = np.random.default_rng(seed)
    real = np.clip(rng.normal(0.75, 0.15, classes), 0, 1)
    synthetic = np.clip(real - 0.04 + rng.normal(0, 0.1, classes), 0, 1)
    return {"real": {"per_class": real}, "synthetic_1x": {"per_class": synthetic}}


def made_up(classes=1000):
    """A study of the size of the paper's."""
    top5 = dict(top5_mean=0.9, top5_std=0.001, top5_difference=-0.02, top5_p_value=0.01)
    one = arms_of({"resnet50": {"real": [0.7309], "synthetic_1x": [0.6496]}}, **top5)
    arms, curve = of_the_paper(), arms_of({"resnet50": scaled()}, **top5)
    names = NAMES[:2]
    comparison = results.per_class({"cas_resnet50": by_class(classes)}, names)
    return {
        "evaluation": dict(
            set="validation", num_images=50_000, class_names=wordnet_ids()[:classes]
        ),
        "sizes": {model: dict(input=224, parameters=25_600_000) for model in TABLE_3},
        "arms": arms | {"resnet50": curve["resnet50"] | one["resnet50"]},
        "cas": results.cas(one, names),
        "scaling": results.scaling(curve, list(scaled())),
        "models": results.models(arms, NAMES),
        "per_class": comparison,
    }


@pytest.fixture(scope="module")
def result():
    return made_up()


def test_tables(result):
    header, rows = report.models_table(result)
    assert header[3:6] == ["real (%)", "synthetic (%)", "real + synthetic (%)"]
    assert rows[0] == [
        "ResNet-50", "224x224", "25.6M", "76.39", "69.24", "78.17", "+1.78", "",
    ]  # fmt: skip
    assert rows[-1][3:] == ["80.21", "72.77", "81.25", "+1.04", "1e-05"] and len(rows) == 13
    header, rows = report.cas_table(result)
    assert header == [
        "model", "trained on", "images", "top-1 (%)", "top-5 (%)", "against real", "p",
    ]  # fmt: skip
    assert rows[1] == ["resnet50", "synthetic", "30", "64.96", "90.00", "-8.13", ""]
    header, rows = report.scaling_table(result)
    assert [row[1] for row in rows] == [f"{k}x" for k in range(11)]
    assert rows[10][2:4] == ["300", "330"] and re.fullmatch(r"7\d\.\d\d ± 0\.\d\d", rows[10][4])
    assert rows[0][6:] == ["", ""] and rows[10][6].startswith("-2.")
    header, rows = report.per_class_table(result)
    assert int(rows[0][2]) + int(rows[0][3]) + int(rows[0][4]) == 1000
    shown = report.tables(result)
    assert shown.count("\n\n") == 4 and "mean; paired t-test over models" in shown


def test_extremes_are_the_largest_gains_and_losses():
    comparison = {"real": np.linspace(0.5, 0.9, 20), "synthetic": np.linspace(0.9, 0.5, 20)}
    rows = report.extremes_table(comparison, [str(i) for i in range(20)])[1]
    assert [row[0] for row in rows] == ["0", "1", "2", "3", "4", "15", "16", "17", "18", "19"]
    assert rows[0] == ["0", "50.00", "90.00", "+40.00"]
    few = {"real": [0.5, 0.6], "synthetic": [0.4, 0.9]}
    assert [row[0] for row in report.extremes_table(few, "ab")[1]] == ["b", "a"]


def test_verdicts(result):
    ((text, good),) = report.verdicts(result)
    assert good and text == (
        "Synthetic images next to real ones: 12 of 12 models gain, +1.04 points on average (paired "
        "t-test over models, p = 1e-05)."
    )
    ((text, good),) = report.verdicts({"scaling": result["scaling"]})
    assert good and text.startswith("resnet50 is best with 30 synthetic images: 7")
    assert report.verdicts({}) == []
    harm = {"a": {"real": [0.7, 0.8, 0.8], "synthetic_1x": [0.5] * 3,
                  "real+synthetic_1x": [0.6, 0.72, 0.69]}}  # fmt: skip
    one = {"models": results.models(arms_of(harm), NAMES)}
    ((text, good),) = report.verdicts(one)
    assert not good and "0 of 1 models gain, -9.67 points" in text and "over seeds, p = 0.0" in text
    single = {"a": {name: [0.5] for name in NAMES}}
    ((text, good),) = report.verdicts({"models": results.models(arms_of(single), NAMES)})
    assert not good and "no paired t-test over seeds" in text


def test_the_page(result, tmp_path):
    report.write(tmp_path, "What <synthetic> images are worth", result, "productive 9% of 1 h")
    page = (tmp_path / "report.html").read_text()
    assert "<h1>What &lt;synthetic&gt; images are worth</h1>" in page
    assert page.count("<h2>") == 4 and page.count('src="data:image/png;base64,') == 4
    assert "Training: productive 9% of 1 h." in page
    assert re.search(r"<td>n\d{8} \([^)]+\)</td>", page)
    assert "http" not in page and "12 of 12 models are better, +1.04 ± 0.48 points" in page
    assert json.loads((tmp_path / "study.json").read_text())["models"]["both"]["num_models"] == 12
    for name in ("cas", "scaling", "models", "per_class_cas_resnet50"):
        image = cv2.imread(str(tmp_path / f"{name}.png"))
        assert min(image.shape[:2]) > 300 and image.std() > 10


def drawn(axes):
    """Labels of the legend."""
    return axes.get_legend_handles_labels()[1]


def test_scaling_is_drawn_as_measured(result):
    figure = figures.scaling(result["scaling"])
    left, right = figure.axes[:2]
    assert (left.get_ylabel(), right.get_ylabel()) == ("top-1 accuracy (%)", "top-5 accuracy (%)")
    assert drawn(left) == ["real only", "resnet50"]
    points = result["scaling"]["resnet50"]["points"]
    line = next(line for line in left.lines if line.get_marker() == "o")
    np.testing.assert_array_equal(line.get_xdata(), 30 * np.arange(11))
    np.testing.assert_allclose(line.get_ydata(), [100 * point["mean"] for point in points])
    level = next(line for line in left.lines if line.get_linestyle() == "--")
    assert level.get_ydata()[0] == pytest.approx(100 * points[0]["mean"])


def test_models_are_drawn_in_order(result):
    left, right = figures.models(result["models"]).axes
    assert [label.get_text() for label in left.get_yticklabels()] == list(TABLE_3)
    assert left.get_ylim()[0] > left.get_ylim()[1]
    assert right.get_title() == "mean +1.04, p = 1e-05 over models"
    widths = [bar.get_width() for bar in right.patches]
    assert widths == pytest.approx([both - real for real, _, both in TABLE_3.values()])


def test_cas_is_drawn_with_its_errors():
    rows = results.cas(
        arms_of({m: {"real": [0.7, 0.72], "synthetic_1x": [0.6, 0.5]} for m in ("a", "b")}),
        ("real", "synthetic_1x"),
    )
    (axes,) = figures.cas(rows).axes
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == pytest.approx([71, 71, 55, 55])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b"]


@pytest.mark.parametrize(("classes", "names"), [(10, 10), (1000, 0)])
def test_classes_are_drawn(classes, names):
    comparison = results.per_class({"a": by_class(classes)}, NAMES[:2])["a"]
    left, right = figures.per_class(comparison, [f"class {i}" for i in range(classes)]).axes
    points = left.collections[0].get_offsets()
    expected = 100 * np.stack([comparison["real"], comparison["synthetic"]], axis=1)
    np.testing.assert_allclose(points, expected)
    assert len(left.texts) == names
    assert left.get_xlim() == left.get_ylim()
    real = right.lines[0].get_ydata()
    assert (np.diff(real) >= 0).all() and len(real) == classes


def test_without_deviations_there_is_no_band():
    from matplotlib.figure import Figure

    for std, bands in (([0.01, 0.02], 1), ([0.0, 0.0], 0)):
        axes = Figure().subplots()
        plots.mean_and_std(axes, [0, 1], [0.5, 0.6], std, "a")
        assert (
            sum(len(c.get_paths()) > 0 and c.get_alpha() == 0.15 for c in axes.collections) == bands
        )
