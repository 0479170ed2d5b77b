"""The demo's road from pretraining to a classifier, by its own command lines, for one arm."""

import dataclasses
import json

from configs.digits.common import ENVIRONMENT
from imagen_ft.demo.__main__ import LANES, digits_steps
from launch.jobs.runner import JobRunner

# Without the samples, the comparison and the other arms, which are commands of the same kinds.
SHORT = (
    "pretrain_base4",
    "pretrain_sr8",
    "finetune_base4",
    "finetune_sr8",
    "generate",
    "real+generated_1x",
)


def test_the_road_ends_in_a_classifier_and_is_not_run_twice(tmp_path, capfd):
    steps = {step.name: step for step in digits_steps(tmp_path, runlocal=True)}
    road = [dataclasses.replace(steps[name], seconds=0) for name in SHORT]
    JobRunner(tmp_path, road, LANES, ENVIRONMENT).run()
    assert set(JobRunner(tmp_path, road, LANES, ENVIRONMENT).marks()) == set(SHORT)
    manifest = json.loads((tmp_path / "generated" / "manifest.json").read_text())
    assert sum(manifest["counts"]) > 0
    for seed in range(2):
        metrics = tmp_path / "classifiers" / "real+generated_1x" / f"seed_{seed}" / "metrics.jsonl"
        assert "validation_accuracy" in metrics.read_text()

    capfd.readouterr()
    JobRunner(tmp_path, road, LANES, ENVIRONMENT).run()
    assert capfd.readouterr().err.count("was complete") == len(SHORT)
