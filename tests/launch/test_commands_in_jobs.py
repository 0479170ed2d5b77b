"""Every command where a cluster has started several processes: it joins them, or says why not."""

import runpy
import sys
import warnings

import jax
import pytest

from launch.errors import InputError
from tests.launch.cluster_variables import SLURM, SLURM_SCRIPT
from tests.support import ROOT

TASK = ["--workdir={folder}/run"]
TEXT = ["--prompts=x", "--weights=x", "--to={folder}/cache"]
WEIGHTS = ["--from=x", "--to={folder}/weights"]
TOGETHER = {
    "classifiers.evaluate": ["--config=configs/digits/evaluate.py", *TASK],
    "classifiers.train": ["--config=configs/digits/classifier.py", *TASK],
    "classifiers.train_clip": ["--config=configs/clip/tiny.py", *TASK],
    "classifiers.transfer": ["--config=configs/clip/few_shot.py", *TASK],
    "classifiers.zero_shot": ["--config=configs/clip/zero_shot_digits.py", *TASK],
    "imagen_ft.evaluate": ["--config=configs/digits/evaluate_images.py", *TASK],
    "imagen_ft.filter": ["--config=configs/digits/filter.py", *TASK],
    "imagen_ft.finetune": ["--config=configs/digits/finetune_base4.py", *TASK],
    "imagen_ft.generate": ["--config=configs/digits/generate.py", *TASK],
    "imagen_ft.sample": ["--config=configs/digits/sample.py", *TASK],
    "imagen_ft.sweep": ["--config=configs/digits/sweep.py", *TASK],
    "imagen_ft.text": TEXT,
}
ALONE = {
    "classifiers.study": ["--config=configs/digits/study.py", *TASK],
    "classifiers.weights": WEIGHTS,
    "imagen_ft.demo": TASK,
    "imagen_ft.weights": WEIGHTS,
    "imagen_ft.worth": ["--config=configs/digits/fast_study.py", *TASK],
    "input_pipeline.prepare": ["--config=x", "--source=x", "--to={folder}/set"],
    "launch.submit": ["status", "x", "--jobs={folder}/jobs"],
    "launch.versions": [],
    "input_pipeline.synthetic": ["--set=x", "--export=folder", "--to={folder}/set"],
}


def commands():
    """All modules of ours that can be run."""
    rooms = ("classifiers", "imagen_ft", "input_pipeline", "launch")
    paths = [path for room in rooms for path in (ROOT / room).rglob("*.py")]
    runnable = [path for path in paths if 'if __name__ == "__main__":' in path.read_text()]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in runnable]
    return {name.removesuffix(".__main__") for name in names}


def test_no_command_is_forgotten():
    assert commands() == TOGETHER.keys() | ALONE.keys()


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a command as one of the processes that the variables speak of: its code and line."""
    monkeypatch.chdir(ROOT)

    def run(name, environment, *argv):
        for variable, value in environment.items():
            monkeypatch.setenv(variable, value)
        argv = [*(TOGETHER | ALONE)[name], *argv]
        monkeypatch.setattr(sys, "argv", [name, *(arg.format(folder=tmp_path) for arg in argv)])
        with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
            warnings.simplefilter("ignore", RuntimeWarning)  # Other tests have imported it.
            runpy.run_module(name, run_name="__main__")
        assert not list(tmp_path.iterdir())
        err = capsys.readouterr().err
        assert err.count("\n") == 1, err
        return ended.value.code, err

    return run


@pytest.mark.parametrize("name", TOGETHER)
def test_a_command_that_joins(run, monkeypatch, name):
    joined = []

    def join(**arguments):
        joined.append(arguments)
        raise InputError("that will do")

    monkeypatch.setattr(jax.distributed, "initialize", join)
    assert run(name, SLURM) == (2, "error: that will do\n")
    (arguments,) = joined
    assert arguments.pop("coordinator_address").startswith("gpu07:")
    assert arguments == dict(num_processes=2, process_id=1, local_device_ids=[])
    for variable in SLURM:
        monkeypatch.delenv(variable)
    code, said = run(name, SLURM_SCRIPT)
    assert (
        code == 2 and "start it with srun, or pass --coordinator=none" in said and len(joined) == 1
    )


@pytest.mark.parametrize("name", ALONE)
def test_a_command_of_one_process(run, name):
    code, said = run(name, SLURM)
    assert code == 2 and "one process, but was started as one of several" in said
    code, said = run(name, {}, "--coordinator=auto")
    assert code == 2 and "--coordinator=auto: this command is one process" in said
