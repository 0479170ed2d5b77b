"""ImageNet's road at a glance: its command lines, and, slow, what they make."""

import json

import pytest

from configs.digits.common import ENVIRONMENT
from imagen_ft.demo import __main__
from imagen_ft.demo.imagenet import STAND_IN, imagenet_jobs
from imagen_ft.demo.road import LANES
from imagen_ft.diffusion.from_config import make_stages
from launch.jobs.runner import JobRunner
from launch.runtime.config import load_config
from tests.support import ROOT


@pytest.mark.parametrize("data", [STAND_IN, "x.zip"])
def test_its_command_lines(tmp_path, monkeypatch, data):
    monkeypatch.chdir(ROOT)
    jobs = {job.name: job for job in imagenet_jobs(tmp_path, data)}
    configs = {
        name: load_config(job.command[1].removeprefix("--config=")) for name, job in jobs.items()
    }
    assert list(jobs) == ["if_i_l", "if_ii_l", "generate", "study"]
    assert all(path.exists() for job in jobs.values() for path in job.inputs)
    source = configs["generate"].real_source
    assert ("standin" in source) == (data == STAND_IN)
    assert source.path == ("data/imagenet" if data == STAND_IN else data)
    assert configs["study"].synthetic == str(tmp_path / "synthetic")


@pytest.mark.parametrize("cascade", ["if", "imagen,size=1024"])
def test_the_tiny_stages_fit_together(cascade, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load_config(f"configs/imagenet/generate.py:runlocal,cascade={cascade}")
    sizes = [stage.denoiser.size for stage in make_stages(config).values()]
    assert sizes == [8, 32, 128][: len(config.stages)]
    for name, entry in config.stages.items():
        trained = load_config(f"configs/imagenet/{name}.py:runlocal")
        assert trained.stage == entry.stage and trained.text == config.text


def test_images_that_are_not_there(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert __main__.run(["demo", "--imagenet=none"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: --imagenet=none: no such file") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow  # Two stages, 1,000 images of both, nine runs of classifiers.
def test_the_whole_road(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    JobRunner(tmp_path, imagenet_jobs(tmp_path, STAND_IN), LANES, ENVIRONMENT).run()
    manifest = json.loads((tmp_path / "synthetic" / "manifest.json").read_text())
    assert manifest["counts"] == [1] * 1000
    assert (tmp_path / "study" / "report.html").exists()
