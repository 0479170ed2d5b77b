"""Which runs are evaluated."""

import numpy as np
import pytest
from etils import epath

from classifiers.evaluation import evaluated_runs
from launch.errors import InputError
from tests.classifiers.evaluation import tiny
from tests.support.written_runs import write_run

VARIABLES = {"params": {"head": {"bias": np.zeros(3, np.float32)}}}


def make_run(folder, **config):
    write_run(folder, {"seeds": 2, **config})


def test_find_runs(tmp_path):
    folder = epath.Path(tmp_path)
    for name in ("b", "a"):
        make_run(tmp_path / "arms" / name)
    (tmp_path / "arms" / "notes").mkdir()
    assert evaluated_runs.find_runs(folder / "arms") == [
        folder / "arms" / "a",
        folder / "arms" / "b",
    ]
    assert evaluated_runs.find_runs(folder / "arms" / "b") == [folder / "arms" / "b"]


def test_no_runs(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "none"):
        with pytest.raises(InputError, match=f"{name} has no run of classifiers.train; train"):
            evaluated_runs.find_runs(epath.Path(tmp_path / name))


def test_a_run_of_another_task(tmp_path):
    make_run(tmp_path / "pretrain", stage={"size": 4}, total_steps=3)
    with pytest.raises(
        InputError, match=f"{tmp_path / 'pretrain'} is not a run of classifiers.train"
    ):
        evaluated_runs.open_run(epath.Path(tmp_path / "pretrain"))


def test_a_run_without_checkpoints(tmp_path):
    make_run(tmp_path / "real", total_steps=3, model={"name": "resnet"})
    with pytest.raises(InputError, match="seed_0 has no checkpoint"):
        evaluated_runs.open_run(epath.Path(tmp_path / "real"))


def test_seeds_of_two_runs_that_were_swapped(tmp_path):
    runs = [tiny.write_run(tmp_path / name, VARIABLES, seeds=2, arm=name) for name in ("a", "b")]
    for run in runs:
        assert len(evaluated_runs.open_run(epath.Path(run)).seeds) == 2
    (runs[0] / "seed_1").rename(tmp_path / "seed_1")
    (runs[1] / "seed_1").rename(runs[0] / "seed_1")
    (tmp_path / "seed_1").rename(runs[1] / "seed_1")
    for run in runs:
        with pytest.raises(InputError, match=r"seed_1/checkpoints/0: run must be .*got \w+/seed_1"):
            evaluated_runs.open_run(epath.Path(run))
