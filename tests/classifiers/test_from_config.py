"""Every recipe starts on a CPU, in every arm, from images on disk; wrong ones are told of."""

import importlib

import numpy as np
import pytest

from classifiers import train
from input_pipeline.imagenet import wordnet_ids
from input_pipeline.synthetic.writer import SyntheticWriter
from launch.runtime.training.metrics import read_metrics
from tests.configs.tables import RECIPES, image_zip
from tests.support import commands
from tests.support.synthetic_set import write_shard

ROOT = "train=set/train,val=set/train"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A zip of one image a class, and a synthetic set of one image a class."""
    folder, names = tmp_path_factory.mktemp("data"), wordnet_ids()
    images = image_zip(folder / "data.zip", [f"set/train/{name}" for name in names], per_class=1)
    write_set(folder / "synthetic", names)
    return images, folder / "synthetic"


def write_set(folder, names):
    count = len(names)
    writer = SyntheticWriter(folder, "set", names, (36, 36, 3), [1] * count, 1, count, {})
    images = np.random.default_rng(0).integers(0, 256, (count, 36, 36, 3), np.uint8)
    write_shard(writer, 0, images, [""] * count)
    writer.finish()


def run(path, data, arm, workdir, *argv):
    """The exit code."""
    images, synthetic = data
    argument = f"runlocal,arm={arm},data={images},{ROOT},synthetic={synthetic}"
    return commands.run(train.main, f"{path}:{argument}", workdir, *argv)


@pytest.mark.parametrize(
    ("name", "arm"),
    [
        ("resnet50", "real+synthetic"),
        *(pytest.param(name, "real+synthetic", marks=pytest.mark.slow) for name in RECIPES),
        pytest.param("vit_s16", "synthetic", marks=pytest.mark.slow),
        pytest.param("deit_s", "real", marks=pytest.mark.slow),
    ],
)
def test_it_starts(name, arm, data, tmp_path, request, monkeypatch):
    monkeypatch.chdir(request.config.rootpath)
    path = f"configs/imagenet/{name}.py"
    assert run(path, data, arm, tmp_path / "run") == 0
    lines = [line for line in read_metrics(tmp_path / "run" / "seed_0") if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert 3 < line["loss"] < 12  # ln 1000 is 6.9
    both = arm == "real+synthetic"
    assert any("loss_by_domain/synthetic" in line for line in lines) == both
    config = importlib.import_module(path[:-3].replace("/", ".")).get_config(f"runlocal,arm={arm}")
    assert len(config.train_sources) == 1 + both


def test_another_number_of_classes(data, tmp_path, request, monkeypatch, capsys):
    monkeypatch.chdir(request.config.rootpath)
    few = image_zip(tmp_path / "few.zip", ["set/train/a", "set/train/b"], per_class=2)
    path = "configs/imagenet/resnet50.py"
    assert run(path, (few, data[1]), "real", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert "config.num_classes must be 2, as in config.evaluation_source, got 1000" in said
    assert said.count("\n") == 1 and not (tmp_path / "run").exists()


def test_an_arm_without_shards(data, tmp_path, request, monkeypatch, capsys):
    monkeypatch.chdir(request.config.rootpath)
    missing = tmp_path / "none"
    path = "configs/imagenet/resnet50.py"
    assert run(path, (data[0], missing), "synthetic", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert f"{missing} is not complete (it has no manifest.json)" in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("model.name=resnet18", "model.name must be one of resnet, resnet_rs, vit, "),
        ("optimizer.name=lion", "optimizer.name must be one of 'adafactor'"),
        (
            "synthetic_weight=0.5",
            "synthetic_weight=0.5 needs synthetic images to fill 0.5 of every batch",
        ),
        (
            "synthetic_weight=1.5 --dry_run",
            "synthetic_weight must be the synthetic share of every batch",
        ),
        ("loss=hinge", "config.loss must be one of cross_entropy, bce"),
    ],
)
def test_wrong_fields(flag, message, data, tmp_path, request, monkeypatch, capsys):
    monkeypatch.chdir(request.config.rootpath)
    path = "configs/imagenet/resnet50.py"
    assert run(path, data, "real", tmp_path / "run", *f"--config.{flag}".split()) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not (tmp_path / "run").exists()
