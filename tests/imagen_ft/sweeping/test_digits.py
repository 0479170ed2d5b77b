"""On the demo's digits a fifth of the images finds what the whole grid does."""

import csv
import os
import subprocess
import sys

import pytest

from configs.digits.common import ENVIRONMENT
from imagen_ft.demo.road import digits_jobs, make_runner
from tests.support import ROOT

ROAD = ("pretrain_base4", "finetune_base4", "pool")


@pytest.mark.slow  # Trains a base and a classifier, and draws 43,000 digits: 6 minutes.
def test_a_fifth_of_the_images_finds_the_choice_of_the_whole_grid(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    jobs = [job for job in digits_jobs(tmp_path, runlocal=False) if job.name in ROAD]
    make_runner(tmp_path, jobs).run()
    config = f"configs/digits/sweep.py:stage=base4,extractor={tmp_path}/classifiers/pool"
    flags = [
        f"--config={config}",
        f"--config.cascade.stages.base4.run={tmp_path}/finetune_base4",
        "--config.measures=('frechet',)",
    ]
    found = {}
    for name, budget in (("whole", 0), ("fifth", 36_000 // 5)):
        # In a program of its own, as the demo's are: those of the tests compile for no speed.
        command = [sys.executable, "-m", "imagen_ft.sweep", f"--workdir={tmp_path / name}"]
        command += [*flags, f"--budget={budget}"]
        subprocess.run(command, cwd=ROOT, env=os.environ | ENVIRONMENT, check=True)
        with (tmp_path / name / "sweep.csv").open() as file:
            rows = list(csv.DictReader(file))
        drawn = sum(int(row["images"]) for row in rows)
        assert drawn == 36_000 if name == "whole" else drawn <= budget
        (best,) = [row for row in rows if row["best"]]
        found[name] = [best[name] for name in ("guidance_weight", "logvar_coeff", "num_steps")]
    assert found["fifth"] == found["whole"]
