"""Many-, medium- and few-shot classes."""

import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

from classifiers.evaluation import label_maps, shot_groups
from classifiers.evaluation.evaluated_runs import EvaluatedRun
from launch.errors import InputError

LIMITS = dict(source=dict(name="digits", split="train"), many=800, few=300)


def test_the_limits_belong_to_medium():
    counts = np.array([1300, 801, 800, 500, 300, 299, 1])
    groups = shot_groups.groups(counts, label_maps.identity("abcdefg"), LIMITS)
    assert groups == ["many", "many", "medium", "medium", "medium", "few", "few"]


def test_a_class_of_several_has_the_images_of_all():
    answers = np.array([1, label_maps.NO_LABEL, 0, 1])
    label_map = label_maps.LabelMap(("a", "b"), np.arange(2), answers, np.ones(4, bool))
    assert shot_groups.groups(np.array([500, 9000, 100, 400]), label_map, LIMITS) == ["few", "many"]


def test_accuracies_are_means_over_classes():
    groups = ["many", "many", "few", "few", "few"]
    means = shot_groups.accuracies([0.5, 1.0, 0.2, None, 0.4], groups)
    assert means == pytest.approx({"many": 0.75, "medium": None, "few": 0.3})


def a_run(classes, names=None):
    path = epath.Path("runs/a")
    return EvaluatedRun(path, ConfigDict(), {}, "", path, classes, names, checkpoint={})


def test_images_of_training_are_counted():
    long_tail = dict(name="digits", split="pool", long_tail=dict(n_max=90, gamma=9))
    counts = shot_groups.count_images(dict(LIMITS, source=long_tail), [a_run(10)])
    assert counts.tolist() == [int(90 * 9 ** (-k / 9) + 1e-9) for k in range(10)]


@pytest.mark.parametrize("run", [a_run(9), a_run(10, list("abcdefghij"))])
def test_other_classes(run):
    with pytest.raises(InputError, match=r"config\.shots\.source must have the .* runs/a"):
        shot_groups.count_images(LIMITS, [run])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(many=200), "few=300 .* many=200"),
        (dict(few=0), "few=0"),
        (dict(medium=5), "got source, many, few, medium"),
    ],
)
def test_wrong_fields(change, said):
    with pytest.raises(InputError, match=said):
        shot_groups.check({**LIMITS, **change})


def test_a_missing_source(tmp_path):
    source = dict(name="image_folder", path=str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"config.shots.source: .*none does not exist"):
        shot_groups.count_images(dict(LIMITS, source=source), [a_run(10)])
