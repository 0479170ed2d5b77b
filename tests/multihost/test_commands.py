"""Commands by two processes that Slurm has started do what one process does alone."""

import shutil
import socket

import cv2
import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

from classifiers import evaluate
from imagen_ft import evaluate as measure
from imagen_ft import finetune
from imagen_ft.text import __main__ as text
from imagen_ft.text.encoders import make_text_encoder
from launch.files import read_json
from launch.runtime.training.metrics import column, read_metrics
from tests.classifiers.evaluation import tiny
from tests.imagen_ft.text import tiny_text
from tests.launch.cluster_variables import SLURM
from tests.multihost.processes import run_processes
from tests.support import commands, small_cascade

NAMES = ["zero", "one", "two", "red fox", "hen"]
SETS = dict(small=dict(source=dict(name="digits", split="test", per_class=6)))
ATTACKS = dict(fgsm=dict(kind="fgsm", epsilon=8, num_images=10))
FINETUNE = """
from tests.imagen_ft.training import test_sampled_metric

def get_config():
    config = test_sampled_metric.config("{folder}/real")
    config.total_steps, config.evaluation_metric.every = 4, 2
    config.checkpoint_every = config.evaluate_every = config.pictures_every = 0
    return config
"""
# Of the run that is fine-tuned before: it enlarges real digits.
MEASURE = """
from configs.digits import evaluate_images
from tests.imagen_ft import tiny_training

def get_config():
    config = evaluate_images.get_config("runlocal,synthetic=,extractor={folder}/real")
    del config.sets.validation
    training = tiny_training.get_config()
    stage = dict(training.pictures, stage=training.stage, run="{folder}/alone")
    del stage["count"]
    cascade = dict(stages=dict(sr8=stage), class_names=training.class_names, text=training.text)
    low = dict(source=dict(name="digits", split="pool"))
    drawn = dict(cascade=dict(cascade, seed=0, batch_size=10), num_images=30, low=low)
    config.sets = dict(drawn=drawn)
    config.measures = ("sliced", "precision_recall", "classes_apart", "copying")
    config.num_worst = 2
    return config
"""
SAMPLE = """
from tests.support import small_cascade

def get_config():
    config = small_cascade.config()
    config.update(seed=0, batch_size=4, images_per_prompt=1, show_stages=True)
    return config
"""


def by_slurm(*arguments):
    """Runs a command as one step of two tasks on this host."""
    with socket.socket() as free:
        # The port follows from the numbers of the job and the step.
        for job in range(4096):
            try:
                free.bind(("127.0.0.1", 61440 + job))
            except OSError:
                continue
            break
    nodes = {name: "127.0.0.1" for name in SLURM if name.endswith("NODELIST")}
    step = SLURM | nodes | {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": "0"}

    def variables(index):
        rank = {name: str(index) for name in ("SLURM_PROCID", "SLURM_LOCALID")}
        return step | rank | {"SLURM_NODEID": "0", "SLURM_STEP_NUM_NODES": "1"}

    found = run_processes(
        "tests.multihost.command_processes", *arguments, variables=variables, timeout=300
    )
    assert found == [dict(processes=2, index=0), dict(processes=2, index=1)]


@pytest.mark.slow
def test_text(tmp_path):
    tiny_text.save(tmp_path / "pipeline")
    (tmp_path / "prompts.txt").write_text("\n".join(NAMES))
    argv = [f"--prompts={tmp_path}/prompts.txt", f"--weights={tmp_path}/pipeline"]
    argv += ["--dtype=float32", "--batch_size=3"]
    argv_alone = ["text", *argv, f"--to={tmp_path}/alone"]
    # What is there already the first process sees, for both.
    (tmp_path / "some.txt").write_text(NAMES[0])
    assert text.run([*argv_alone, f"--prompts={tmp_path}/some.txt"]) == 0
    shutil.copytree(tmp_path / "alone", tmp_path / "both")
    assert text.run(argv_alone) == 0
    by_slurm("text", *argv, f"--to={tmp_path}/both")
    both, alone = (
        make_text_encoder(ConfigDict(dict(cache=str(tmp_path / name)))).embed(NAMES)
        for name in ("both", "alone")
    )
    np.testing.assert_allclose(both, alone, atol=1e-5)
    assert len(list((tmp_path / "both").glob("part-*"))) == 2


@pytest.mark.slow
def test_sample(tmp_path):
    (tmp_path / "config.py").write_text(SAMPLE)
    argv = f"--config={tmp_path}/config.py", f"--workdir={tmp_path}/run", "--path=2"
    by_slurm("sample", *argv)
    assert (tmp_path / "run" / "samples.png").exists() and (tmp_path / "run" / "path.png").exists()
    stages = small_cascade.make_cascade().sample(
        small_cascade.NAMES, batch_size=4, every_stage=True
    )
    for number, name in enumerate(small_cascade.NAMES):
        for images in stages:
            size = images.shape[1]
            path = tmp_path / "run" / f"{number:05d}_{name}_{size}px.png"
            written = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).astype(int)
            assert np.abs(written - images[number, ..., 0]).max() <= 1


@pytest.mark.slow
def test_evaluate(tmp_path):
    tiny.write_run(tmp_path / "both" / "real", tiny.variables, seeds=2, model=tiny.FIELDS)
    shutil.copytree(tmp_path / "both", tmp_path / "alone")
    config = tiny.write_config(tmp_path / "config.py", SETS, ATTACKS)
    assert commands.run(evaluate.main, config, epath.Path(tmp_path / "alone")) == 0
    by_slurm("evaluate", f"--config={config}", f"--workdir={tmp_path}/both")
    both, alone = (read_json(tmp_path / x / "evaluation_small.json") for x in ("both", "alone"))
    for name in ("accuracies", "per_class", "attacks", "checkpoints"):
        assert both["arms"]["real"][name] == alone["arms"]["real"][name]
    assert both["arms"]["real"]["loss"] == pytest.approx(alone["arms"]["real"]["loss"], rel=1e-5)


@pytest.mark.slow
def test_what_a_stage_draws_is_measured(tmp_path):
    """While it is trained, and by the command behind it."""
    tiny.write_run(tmp_path / "real", tiny.variables, model=tiny.FIELDS)
    (tmp_path / "finetune.py").write_text(FINETUNE.format(folder=tmp_path))
    (tmp_path / "measure.py").write_text(MEASURE.format(folder=tmp_path))
    assert (
        commands.run(finetune.main, tmp_path / "finetune.py", epath.Path(tmp_path / "alone")) == 0
    )
    by_slurm("finetune", f"--config={tmp_path}/finetune.py", f"--workdir={tmp_path}/both")
    both, alone = (
        column(read_metrics(tmp_path / run), "sampled_mind") for run in ("both", "alone")
    )
    assert both[0].tolist() == alone[0].tolist() == [2, 4]
    np.testing.assert_allclose(both[1], alone[1], rtol=0.01)

    workdir = epath.Path(tmp_path / "measured_alone")
    assert commands.run(measure.main, tmp_path / "measure.py", workdir) == 0
    by_slurm("measure", f"--config={tmp_path}/measure.py", f"--workdir={tmp_path}/measured_both")
    values = [
        [
            result["value"]
            for result in read_json(folder / "evaluation.json")["sets"]["drawn"]["results"]
        ]
        for folder in (tmp_path / "measured_both", tmp_path / "measured_alone")
    ]
    assert len(values[0]) == 6
    np.testing.assert_allclose(*values, rtol=0.02)
