"""With `runlocal` every config starts on a CPU."""

import importlib
import json
import math

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from classifiers import evaluate, from_config
from input_pipeline.imagenet import wordnet_ids
from tests.classifiers.evaluation import tiny
from tests.configs.tables import CONFIGS, ROOT, command, image_zip, load
from tests.support import commands

FINETUNE = "imagen_ft.finetune"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("group", "arguments", "size"),
    [("cifar10", "root=set", 10), ("imagenet", "val=set/test", 1000)],
)
def test_runlocal_evaluates_on_a_cpu(group, arguments, size, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    classes = wordnet_ids() if size == 1000 else load("configs/cifar10/common.py").CLASS_NAMES
    folders = [f"set/test/{name}" for name in classes]
    data = image_zip(tmp_path / "data.zip", folders, per_class=1 if size == 1000 else 8)
    fields = dict(name="resnet", stage_sizes=(1,), width=4, small_stem=True, dtype="float32")
    model = from_config.make_model(ConfigDict(fields), size)
    variables = from_config.init_model(model, jax.random.key(0), (16, 16, 3))
    head = jax.tree.map(np.zeros_like, variables["params"]["head"])
    variables = {**variables, "params": {**variables["params"], "head": head}}
    tiny.write_run(tmp_path / "run", variables, model=fields, evaluation=dict(size=16))
    config = f"configs/{group}/evaluate.py:runlocal,data={data},{arguments}"
    assert commands.run(evaluate.main, config, tmp_path / "run") == 0
    (path,) = (tmp_path / "run").glob("evaluation_*.json")
    found = json.loads(path.read_text())
    assert found["num_images"] == (80 if size == 10 else 1000)
    (arm,) = found["arms"].values()
    # With a head of zeros it always says the first class.
    assert arm["accuracies"] == [1 / size] and arm["loss"] == [pytest.approx(math.log(size))]
    assert arm["attacks"] and arm["calibration_error"] == [pytest.approx(0, abs=1e-6)]


def starts(path, argument, workdir, *overrides):
    """Trains with `runlocal`; the run's last metrics."""
    task = importlib.import_module(command(path)[0])
    assert commands.run(task.main, f"{path}:runlocal,{argument}", workdir, *overrides) == 0
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return {key: value for line in lines for key, value in json.loads(line).items()}


@pytest.mark.slow  # Compiles a step, an evaluation and a sampler of eight networks: 3 minutes.
@pytest.mark.parametrize(
    "path", [path for path in CONFIGS if command(path)[0] == FINETUNE and "digits" not in path]
)
def test_runlocal_starts_on_a_cpu(path, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    imagenet = path.startswith("configs/imagenet")
    classes = wordnet_ids() if imagenet else load("configs/cifar10/common.py").CLASS_NAMES
    folders = [f"set/train/{name}" for name in classes]
    data = image_zip(tmp_path / "data.zip", folders, per_class=1 if imagenet else 60)
    roots = "train=set/train,val=set/train" if imagenet else "root=set"
    config = load(path).get_config(f"runlocal,{roots}")
    metrics = starts(path, f"data={data},{roots}", tmp_path / "run")
    assert metrics["step"] == config.total_steps
    assert 0 < metrics["loss"] < 20 and 0 < metrics["validation_loss"] < 20
    assert (tmp_path / f"run/pictures/step_{config.total_steps}.png").exists()
