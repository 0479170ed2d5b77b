"""Which runs are evaluated."""

import pytest
from etils import epath

from classifiers.evaluation import evaluated_runs
from launch.errors import InputError


def make_run(folder, config='{"seeds": 2}'):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config)


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
        with pytest.raises(InputError, match=f"{name} holds no run of classifiers.train: train"):
            evaluated_runs.find_runs(epath.Path(tmp_path / name))


def test_a_run_of_another_task(tmp_path):
    make_run(tmp_path / "pretrain", '{"stage": {"size": 4}, "total_steps": 3}')
    with pytest.raises(InputError, match=f"{tmp_path / 'pretrain'} is no run of classifiers.train"):
        evaluated_runs.open_run(epath.Path(tmp_path / "pretrain"))


def test_a_run_without_checkpoints(tmp_path):
    make_run(tmp_path / "real", '{"seeds": 2, "total_steps": 3, "model": {"name": "resnet"}}')
    with pytest.raises(InputError, match="seed_0 holds no finished checkpoint"):
        evaluated_runs.open_run(epath.Path(tmp_path / "real"))
