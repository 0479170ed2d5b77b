"""The demo's road from pretraining to a classifier, by its own command lines, for one arm."""

import dataclasses
import json
import os

import pytest

from configs.digits.common import ENVIRONMENT
from imagen_ft.demo.road import LANES, digits_jobs
from launch.jobs.runner import JobRunner

# Without the samples, the comparison and the other arms, which are commands of the same kinds.
SHORT = (
    "pretrain_base4",
    "pretrain_sr8",
    "finetune_base4",
    "finetune_sr8",
    "generate",
    "real+synthetic_1x",
)
FEW = ("--config.total_steps=4", "--config.checkpoint_every=4", "--config.evaluate_every=4")
# A stage is pretrained and fine-tuned by one program, which is compiled once.
SAME = ("--config.seed=0", "--config.optimizer.schedule=constant")
CHEAPER = {
    "imagen_ft.finetune": (*FEW, *SAME, "--config.optimizer.learning_rate=1e-3"),
    "classifiers.train": (*FEW, "--config.optimizer.warmup_steps=0", "--config.model.width=8"),
}
# As little as possible is spent on compiling; the rest is the demo's.
QUICK = ENVIRONMENT | {"XLA_FLAGS": os.environ["XLA_FLAGS"]}


@pytest.mark.slow  # Six commands; each of them has fast tests of its own.
def test_the_road_ends_in_a_classifier_and_is_not_run_twice(tmp_path, capfd):
    jobs = {job.name: job for job in digits_jobs(tmp_path, runlocal=True)}
    road = []
    for job in (jobs[name] for name in SHORT):
        command = (*job.command, *CHEAPER.get(job.command[0], ()))
        road.append(dataclasses.replace(job, command=command, seconds=0))
    JobRunner(tmp_path, road, LANES, QUICK).run()
    assert set(JobRunner(tmp_path, road, LANES, QUICK).marks()) == set(SHORT)
    manifest = json.loads((tmp_path / "synthetic" / "manifest.json").read_text())
    assert sum(manifest["counts"]) > 0
    for seed in range(2):
        metrics = tmp_path / "classifiers" / "real+synthetic_1x" / f"seed_{seed}" / "metrics.jsonl"
        assert "validation_accuracy" in metrics.read_text()

    capfd.readouterr()
    JobRunner(tmp_path, road, LANES, QUICK).run()
    assert capfd.readouterr().err.count("already complete") == len(SHORT)
