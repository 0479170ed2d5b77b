"""The numbers of a study against the paper's own table, scipy, and by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import stats

from classifiers.studies import results
from classifiers.studies.inventory import Inventory
from classifiers.studies.plan import REAL, Arm, PlannedRun
from launch.errors import InputError
from tests.support.study_results import TABLE_3, arms_of, of_the_paper

SYNTHETIC, BOTH = Arm(False, 1), Arm(True, 1)
NAMES = tuple(arm.name for arm in (REAL, BOTH, SYNTHETIC))


def test_names_of_arms():
    assert NAMES == ("real", "real+synthetic_1x", "synthetic_1x")
    assert [arm.arguments for arm in (REAL, BOTH, SYNTHETIC, Arm(True, 10))] == [
        "arm=real", "arm=real+synthetic,k=1", "arm=synthetic,k=1", "arm=real+synthetic,k=10",
    ]  # fmt: skip


def test_the_paired_t_test_of_the_paper():
    comparison = results.models(of_the_paper(), ("real", "synthetic_1x", "real+synthetic_1x"))
    both = comparison["both"]
    # Section 5.3: "using a paired t-test, the results are statistically significant with p = 1e-5".
    assert f"{both['p_value']:.0e}" == "1e-05"
    real, fake, mixed = np.array(list(TABLE_3.values())).T / 100
    assert both["p_value"] == pytest.approx(stats.ttest_rel(mixed, real).pvalue, rel=1e-9)
    assert both["mean_difference"] == pytest.approx(0.0104)
    assert both["std_difference"] == pytest.approx(np.std(mixed - real, ddof=1))
    assert (both["num_models"], both["num_better"]) == (12, 12)
    alone = comparison["synthetic"]
    assert (alone["num_better"], alone["num_models"]) == (0, 12)
    assert alone["p_value"] == pytest.approx(stats.ttest_rel(fake, real).pvalue, rel=1e-9)
    row = comparison["rows"][0]
    assert (row["model"], row["seeds"], row["p_value"]) == ("ResNet-50", 1, None)
    assert row["difference"] == pytest.approx(0.0178) and row["both_std"] == 0


def test_over_seeds():
    """Differences of 1, 2 and 3 points: t = 2 / (1 / sqrt 3) with two degrees of freedom."""
    comparison = results.against([0.51, 0.64, 0.58], [0.50, 0.62, 0.55])
    assert comparison["difference"] == pytest.approx(0.02) and comparison["mean"] == pytest.approx(
        1.73 / 3
    )
    t = 2 * np.sqrt(3)
    # Student's distribution with two degrees of freedom has a closed form.
    assert comparison["p_value"] == pytest.approx(1 - t / np.sqrt(2 + t**2))
    assert results.against([0.5], [0.4])["p_value"] is None
    assert results.against([0.5, 0.6], [0.4, 0.5])["p_value"] is None


def test_over_models_counts_gains():
    comparison = results.over_models(np.array([0.5, 0.7, 0.6, 0.9]), np.array([0.5, 0.6, 0.7, 0.8]))
    assert (comparison["num_models"], comparison["num_better"]) == (4, 2)
    assert comparison["mean_difference"] == pytest.approx(0.025)
    one = results.over_models(np.array([0.5]), np.array([0.4]))
    assert (one["num_better"], one["std_difference"], one["p_value"]) == (1, 0.0, None)


def test_scaling():
    accuracies = {"real": [0.5, 0.7], "real+synthetic_1x": [0.6, 0.9],
                  "real+synthetic_10x": [0.4, 0.8]}  # fmt: skip
    curve = results.scaling(arms_of({"resnet": accuracies}), list(accuracies))["resnet"]
    assert curve["best"] == "real+synthetic_1x"
    points = curve["points"]
    assert [point["copies"] for point in points] == [0, 1, 10]
    assert [point["num_synthetic"] for point in points] == [0, 30, 300]
    assert [point["mean"] for point in points] == pytest.approx([0.6, 0.75, 0.6])
    std = [np.sqrt(0.02), np.sqrt(0.045), np.sqrt(0.08)]
    assert [point["std"] for point in points] == pytest.approx(std)
    assert [point["difference"] for point in points] == pytest.approx([0, 0.15, 0])
    assert points[0]["p_value"] is None and points[0]["top5_mean"] is None
    assert points[1]["p_value"] == pytest.approx(stats.ttest_rel([0.6, 0.9], [0.5, 0.7]).pvalue)


def test_per_class():
    arms = arms_of({"a": {"real": [0.5], "synthetic_1x": [0.4]}})
    arms["a"]["real"]["per_class"] = [0.1, 0.4, 0.6, 0.9, 0.5]
    arms["a"]["synthetic_1x"]["per_class"] = [0.2, 0.3, 0.6 + 1e-12, 0.8, 0.7]
    comparison = results.per_class(arms, ("real", "synthetic_1x"))["a"]
    assert (comparison["better"], comparison["equal"], comparison["worse"]) == (2, 1, 2)
    assert comparison["share_better"] == 0.4
    expected = np.corrcoef(comparison["real"], comparison["synthetic"])[0, 1]
    assert comparison["correlation"] == pytest.approx(expected)
    assert comparison["classes"] == [0, 1, 2, 3, 4]
    arms["a"]["real"]["per_class"] = [0.5] * 5
    comparison = results.per_class(arms, ("real", "synthetic_1x"))["a"]
    assert comparison["correlation"] is None and comparison["better"] == 3
    # A class that has no images in the set.
    for name, values in (("real", [0.1, None, 0.6]), ("synthetic_1x", [0.2, None, 0.5])):
        arms["a"][name]["per_class"] = values
    comparison = results.per_class(arms, ("real", "synthetic_1x"))["a"]
    assert (comparison["classes"], comparison["real"], comparison["synthetic"]) == (
        [0, 2],
        [0.1, 0.6],
        [0.2, 0.5],
    )
    assert comparison["share_better"] == 0.5


def test_cas():
    arms = of_the_paper()
    rows = results.cas({"ResNet-50": arms["ResNet-50"]}, ("real", "synthetic_1x"))
    assert [(row["model"], row["arm"]) for row in rows] == [
        ("ResNet-50", "real"),
        ("ResNet-50", "synthetic_1x"),
    ]
    assert [row["mean"] for row in rows] == pytest.approx([0.7639, 0.6924])
    assert rows[1]["difference"] == pytest.approx(-0.0715)


def evaluations(folder, **fields):
    """Evaluations of one model's real and synthetic images, on disk."""
    runs = []
    for arm, accuracies in ((REAL, [0.5, 0.7]), (SYNTHETIC, [0.4, 0.5])):
        run = PlannedRun("resnet", arm, Path(folder) / arm.name, (), ConfigDict(), "")
        run.folder.mkdir()
        measured = {"accuracies": accuracies, "per_class": [0.6, 0.5], "top5": [0.8, 0.9],
                    "p_value": 0.5, "mean": 0.0, "std": 0.0}  # fmt: skip
        evaluation = {"num_images": 10, "class_names": ["a", "b"], "arms": {arm.name: measured}}
        evaluation |= fields if arm is SYNTHETIC else {}
        (run.folder / "evaluation_test.json").write_text(json.dumps(evaluation))
        runs.append(run)
    return runs


CONFIG = ConfigDict(
    dict(
        studies=("cas", "per_class"),
        models_of=dict(cas=("resnet",), per_class=("resnet",)),
        copies=1,
        evaluation=dict(config="", set="test"),
    )
)
INVENTORY = Inventory(
    {("resnet", "real"): (30, 0), ("resnet", "synthetic_1x"): (0, 30)}, {"resnet": (8, 500)}
)


def test_collected(tmp_path):
    result = results.collect(CONFIG, evaluations(tmp_path), INVENTORY)
    assert set(result) == {"evaluation", "sizes", "arms", "cas", "per_class"}
    assert result["sizes"] == {"resnet": {"input": 8, "parameters": 500}}
    arm = result["arms"]["resnet"]["synthetic_1x"]
    # The evaluation of one run knows of no other.
    assert arm["p_value"] == pytest.approx(stats.ttest_rel([0.4, 0.5], [0.5, 0.7]).pvalue)
    assert (arm["mean"], arm["num_synthetic"]) == (pytest.approx(0.45), 30)
    assert arm["top5_mean"] == pytest.approx(0.85) and arm["top5_difference"] == 0
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("fields", [dict(num_images=9), dict(class_names=["a", "c"])])
def test_evaluations_of_different_images(tmp_path, fields):
    with pytest.raises(
        InputError, match=r"synthetic_1x/evaluation_test\.json was made on other images"
    ):
        results.collect(CONFIG, evaluations(tmp_path, **fields), INVENTORY)
