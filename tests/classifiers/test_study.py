"""A study through its command line; its jobs are played by `fake_python.py`, but for the last."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from classifiers import evaluate, study
from classifiers.studies.plan import REAL
from input_pipeline.sources.digits import DIGIT_NAMES
from input_pipeline.synthetic.source import SyntheticSource
from input_pipeline.synthetic.writer import SyntheticWriter
from launch.files import read_json, write_json
from launch.runtime import app
from tests.classifiers import fake_python
from tests.support import ROOT
from tests.support.synthetic_set import write_shard

CONFIG = "configs/digits/study.py:runlocal"
ARMS = ("real", "real+synthetic_1x", "synthetic_1x")
RUNS = [f"{model}-{arm}" for model in ("resnet", "narrow") for arm in ARMS]
CAS = "--config.studies=('cas',)"
OF_CAS = [
    f"{task}-resnet-{arm}" for arm in ("real", "synthetic_1x") for task in ("train", "evaluate")
]
STEPS = {f"{task}-{run}" for run in RUNS for task in ("train", "evaluate")}


def a_set(folder, level):
    """Two copies of the 30 digits' labels, all of one level."""
    writer = SyntheticWriter(folder, "plain", DIGIT_NAMES, (8, 8, 1), [3] * 10, 2, 60, {})
    write_shard(writer, 0, np.full((60, 8, 8, 1), level, np.uint8), [""] * 60)
    writer.finish()
    return folder


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    return a_set(tmp_path_factory.mktemp("synthetic") / "set", 255)


class Site:
    """A folder with a fake Python, and a study in it."""

    def __init__(self, folder, synthetic):
        self.folder, self.workdir = folder, folder / "study"
        self.python = folder / "python"
        source = Path(fake_python.__file__).read_text()
        self.python.write_text(f"#!{sys.executable} -S\n{source}")
        self.python.chmod(0o755)
        self.argv = (
            f"--config={CONFIG}",
            f"--workdir={self.workdir}",
            f"--config.synthetic={synthetic}",
            f"--python={self.python}",
        )

    def run(self, *argv):
        """The exit code."""
        with pytest.raises(SystemExit) as ended:
            app.run(study.main, "", study.define_flags, argv=["task", *self.argv, *argv])
        return ended.value.code

    def start(self, *argv):
        """The study as a process of its own."""
        command = [sys.executable, "-m", "classifiers.study", *self.argv, *argv]
        return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)

    def calls(self):
        """The steps that were started since the last question, in order."""
        path = self.folder / "calls"
        names = [line.split()[0] for line in fake_python.lines(path)]
        path.unlink(missing_ok=True)
        return names

    def write(self, name, *lines):
        (self.folder / name).write_text("".join(f"{line}\n" for line in lines))

    def result(self):
        return read_json(self.workdir / "study.json")


@pytest.fixture
def site(tmp_path, synthetic, monkeypatch):
    monkeypatch.chdir(ROOT)
    return Site(tmp_path, synthetic)


def one_line(capsys):
    err = capsys.readouterr().err
    said = [line for line in err.splitlines() if re.match("error|preempted", line)]
    assert len(said) == 1, err
    return said[0]


def test_a_study_from_end_to_end(site, capsys):
    assert site.run("--jobs=3") == 0
    calls = site.calls()
    assert len(calls) == len(STEPS) and set(calls) == STEPS
    for run in RUNS:
        assert calls.index(f"train-{run}") < calls.index(f"evaluate-{run}")
    result = site.result()
    assert result["evaluation"] == dict(set="test", num_images=400, class_names=fake_python.CLASSES)
    assert result["sizes"] == {
        "resnet": dict(input=8, parameters=77754),
        "narrow": dict(input=8, parameters=19810),
    }
    for model, arms in result["arms"].items():
        assert set(arms) == set(ARMS)
        for name, arm in arms.items():
            assert arm["accuracies"] == fake_python.accuracies(model, name, 2)
    both = result["arms"]["narrow"]["real+synthetic_1x"]
    assert (both["num_real"], both["num_synthetic"], both["copies"]) == (30, 30, 1)
    assert (result["arms"]["narrow"]["real"]["num_synthetic"]) == 0
    page = (site.workdir / "report.html").read_text()
    assert page.count("<figure>") == page.count('src="data:image/png;base64,') == 4
    for name in ("cas", "scaling", "models", "per_class_resnet"):
        assert (site.workdir / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert "report: " in out and "2 of 2 models gain, +6.50 points" in out
    assert "2 of 2 models gain, +6.50 points" in page


def test_filters_are_compared_with_random_parts(site, capsys, tmp_path, synthetic):
    keys = SyntheticSource(synthetic)
    lists = {"kept": range(0, 30, 2), "random": range(15)}
    for name, rows in lists.items():
        write_json(tmp_path / f"{name}.json", [keys.key(i) for i in rows])
    site.argv = (f"--config={CONFIG},filter={tmp_path}", *site.argv[1:])
    assert site.run() == 0
    arms = [
        REAL.name,
        *(f"real+synthetic_1x{end}" for end in ("", "_filter_kept", "_filter_random")),
    ]
    assert {call.partition("-resnet-")[2] for call in site.calls()} == set(arms)
    (row,) = site.result()["filters"]
    assert (row["filter"], row["num_kept"], row["num_synthetic"]) == ("filter", 15, 30)
    assert row["difference"] == pytest.approx(0.03) and row["all"] == row["random"] < row["kept"]
    assert (site.workdir / "filters.png").read_bytes().startswith(b"\x89PNG")
    page = (site.workdir / "report.html").read_text()
    assert (
        "filter, resnet: the kept images score +3.00 points against the same number at random"
        in page
    )
    assert "kept - random" in capsys.readouterr().out
    # Another list makes what it concerns anew.
    write_json(tmp_path / "kept.json", [keys.key(i) for i in range(1, 30, 2)])
    assert site.run() == 0
    assert {call.partition("-resnet-")[2] for call in site.calls()} == {arms[2]}
    (tmp_path / "random.json").unlink()
    assert site.run() == 2
    assert "random.json: no such file" in one_line(capsys)


def test_what_is_done_is_not_done_again(site):
    assert site.run(CAS) == 0
    # One at a time, and each is evaluated once it is trained.
    assert site.calls() == OF_CAS
    assert set(site.result()) == {"evaluation", "sizes", "arms", "cas"}
    assert site.run(CAS) == 0 and site.calls() == []
    # Others need some of the same runs.
    more = ("--config.studies=('cas','models')", "--config.models_of.models=('resnet',)")
    assert site.run(*more) == 0
    assert site.calls() == [f"{task}-resnet-real+synthetic_1x" for task in ("train", "evaluate")]
    assert set(site.result()) == {"evaluation", "sizes", "arms", "cas", "models"}


@pytest.mark.slow
def test_other_numbers_or_images_run_what_they_concern(site, tmp_path):
    assert site.run(CAS) == 0 and site.calls() == OF_CAS
    assert site.run(CAS, "--config.overrides=('optimizer.learning_rate=0.2',)") == 0
    assert site.calls() == OF_CAS
    folder = a_set(tmp_path / "other", 255)
    other = (CAS, f"--config.synthetic={folder}")
    assert site.run(*other) == 0 and site.calls() == OF_CAS
    shutil.rmtree(folder)
    a_set(folder, 254)
    assert site.run(*other) == 0 and site.calls() == OF_CAS[2:]


@pytest.mark.parametrize(
    ("code", "ours", "word"), [(2, 2, "error"), (75, 75, "preempted"), (9, 1, "error")]
)
def test_a_job_that_fails(site, capsys, code, ours, word):
    site.write("fail", f"train-resnet-synthetic_1x {code}")
    assert site.run(CAS) == ours
    log = site.workdir / "logs" / "train-resnet-synthetic_1x.log"
    assert one_line(capsys) == (
        f"{word}: train-resnet-synthetic_1x: train-resnet-synthetic_1x had bad luck "
        f"(exit code {code}, log: {log})"
    )
    assert "had bad luck" in log.read_text()
    assert not (site.workdir / "study.json").exists()
    assert site.calls() == OF_CAS[:3]
    site.write("fail")
    # What had failed and what comes after it; nothing else.
    assert site.run(CAS) == 0 and site.calls() == OF_CAS[2:]


def wait_until(happened):
    deadline = time.monotonic() + 100
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_a_study_that_is_killed_goes_on(site, capsys):
    stuck = "train-resnet-synthetic_1x"
    site.write("wait", stuck)
    calls = site.folder / "calls"
    with site.start(CAS) as process:
        wait_until(lambda: calls.exists() and stuck in calls.read_text())
        assert site.run(CAS) == 2
        assert "in use by another process" in one_line(capsys)
        process.terminate()
        err = process.communicate(timeout=120)[1]
    assert process.returncode == 75
    assert err.splitlines()[-1].startswith("preempted: SIGTERM: every step was asked")
    assert site.calls() == OF_CAS[:3]
    with site.start(CAS) as process:
        wait_until(calls.exists)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=120)
    assert site.calls() == [stuck] and not (site.workdir / "study.json").exists()
    site.write("go")
    assert site.run(CAS) == 0 and site.calls() == OF_CAS[2:]


def test_jobs_are_submitted(site):
    submit = site.folder / "submit"
    submit.write_text(f'#!/bin/sh\necho "$1 $2" >>{site.folder}/told\nshift 2\n"$@"\n')
    submit.chmod(0o755)
    argv = ("--jobs=2", f"--submit={submit} 'lane {{lane}}' --job-name={{step}}")
    assert site.run(CAS, *argv) == 0
    lines = fake_python.lines(site.folder / "told")
    assert sorted(line.split("--job-name=")[1] for line in lines) == sorted(site.calls())
    assert {line.split(" --")[0] for line in lines} == {"lane 0", "lane 1"}
    # Who starts them changes nothing in what they make.
    assert site.run(CAS) == 0 and site.calls() == []


def test_the_command_lines(site, synthetic):
    only = ("--config.studies=('models',)", "--config.models_of.models=('narrow',)")
    assert site.run(*only, "--config.seeds=3", "--config.overrides=('batch_size=16',)") == 0
    arguments = dict(line.split(" ", 1) for line in fake_python.lines(site.folder / "calls"))
    folder = site.workdir / "runs" / "narrow" / "real+synthetic_1x"
    assert json.loads(arguments["train-narrow-real+synthetic_1x"]) == [
        "--config=configs/digits/classifier.py:runlocal,arm=real+synthetic,k=1",
        f"--workdir={folder}",
        "--config.batch_size=16",
        "--config.model.width=8",
        "--config.seeds=3",
        f"--config.train_sources.synthetic.path={synthetic}",
        "--coordinator=none",
    ]
    assert json.loads(arguments["train-narrow-real"]) == [
        "--config=configs/digits/classifier.py:runlocal,arm=real",
        f"--workdir={folder.with_name('real')}",
        "--config.batch_size=16",
        "--config.model.width=8",
        "--config.seeds=3",
        "--coordinator=none",
    ]
    assert json.loads(arguments["evaluate-narrow-real+synthetic_1x"]) == [
        "--config=configs/digits/evaluate.py",
        f"--workdir={folder}",
        "--coordinator=none",
    ]
    assert len(site.result()["arms"]["narrow"]["real"]["accuracies"]) == 3


def test_a_model_begins_with_another_ones_run_of_the_same_arm(site):
    path = site.folder / "warm.py"
    path.write_text(
        "from configs.digits import classifier\n\n\n"
        "def get_config(arg=''):\n"
        "    config = classifier.get_config(arg)\n"
        "    config.init_from = ''\n"
        "    return config\n"
    )
    small, large = dict(config=f"{path}:runlocal"), dict(config=f"{path}:runlocal")
    models = dict(small=small, large=dict(large, init_from="small"))
    config = a_config(site, studies=("cas",), models=models, models_of=dict(cas=("large",)))
    site.argv = (config, *site.argv[1:])
    assert site.run("--jobs=4") == 0
    arguments = dict(line.split(" ", 1) for line in fake_python.lines(site.folder / "calls"))
    calls = site.calls()
    for arm in ("real", "synthetic_1x"):
        assert calls.index(f"train-small-{arm}") < calls.index(f"train-large-{arm}")
        start = f"--config.init_from={site.workdir}/runs/small/{arm}"
        assert start in json.loads(arguments[f"train-large-{arm}"])
        assert not any("init_from" in word for word in json.loads(arguments[f"train-small-{arm}"]))
    assert {row["model"] for row in site.result()["cas"]} == {"large"}


@pytest.mark.slow  # Six programs that compile.
def test_its_numbers_are_those_of_an_evaluation_of_its_runs(site, synthetic):
    """Trains and evaluates; then classifiers.evaluate compares the same runs in its own way."""
    site.argv = site.argv[:-1]
    numbers = ("total_steps=60", "batch_size=16", "model.stage_sizes=(1,)", "seeds=3")
    argv = ("--config.studies=('scaling','cas')", f"--config.overrides={numbers}", "--jobs=2")
    assert site.run(*argv) == 0
    runs = site.workdir / "runs" / "resnet"
    with pytest.raises(SystemExit) as ended:
        argv = ["task", "--config=configs/digits/evaluate.py", f"--workdir={runs}"]
        app.run(evaluate.main, "", argv=argv)
    assert ended.value.code == 0
    evaluated, arms = (
        read_json(runs / "evaluation_test.json")["arms"],
        site.result()["arms"]["resnet"],
    )
    assert set(arms) == set(evaluated) == set(ARMS)
    for name, arm in evaluated.items():
        for key in ("accuracies", "mean", "std", "p_value", "per_class"):
            assert arms[name][key] == arm[key]
    # White squares teach nothing.
    assert arms["synthetic_1x"]["mean"] + 0.03 < arms["real"]["mean"]
    assert (site.workdir / "scaling.png").exists()


def test_dry_run(site, capsys):
    assert site.run("--dry_run", "--jobs=2", "--submit=env LANE={lane}") == 0
    out, err = capsys.readouterr()
    assert err == "" and not site.workdir.exists() and site.calls() == []
    config, end = json.JSONDecoder().raw_decode(out)
    # That of filters needs one that has run.
    assert config["studies"] == [name for name in study.plan.STUDIES if name != "filters"]
    lines = out[end:].strip().splitlines()
    commands = [line for line in lines if line.startswith("env 'LANE={lane}' ")]
    # What --submit starts may be a job of several processes.
    assert len(commands) == len(STEPS) and "--coordinator" not in "".join(commands)
    assert sum(" -m classifiers.train --config=" in line for line in commands) == 6
    assert "arm=real+synthetic,k=1 " in commands[2]
    assert "resnet: 77,754 parameters" in lines
    assert lines[-1] == "6 runs of classifiers.train, 12 trainings over all seeds"


def test_alone_on_the_word_of_the_user(site, capsys):
    assert site.run(CAS, "--dry_run", "--coordinator=none", "--submit=env LANE={lane}") == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith(" --coordinator=none") for line in lines) == len(OF_CAS)


def a_config(site, **fields):
    """A study of one model, with other fields."""
    path = site.folder / "other.py"
    path.write_text(
        "from ml_collections import ConfigDict\nfrom configs.digits import study\n"
        "def get_config():\n"
        "    config = study.get_config('runlocal').to_dict()\n"
        f"    config |= {fields!r}\n"
        "    return ConfigDict(config)\n"
    )
    return f"--config={path}"


CLASSIFIER = "configs/digits/classifier.py"
BAD = {
    "study": (dict(studies=("cas", "cats")), "config.studies must be some of cas, "),
    "no studies": (dict(studies=()), "config.studies is empty; choose some of cas, scaling"),
    "no models": (dict(models_of=dict(cas=())), "config.models_of.cas is empty; choose some of"),
    "unknown model": (
        dict(models_of=dict(cas=("vgg",))),
        "config.models_of.cas must be some of bottleneck, deep, narrow, resnet, wide, got 'vgg'",
    ),
    "folder": (
        dict(models={"a b": dict(config=CLASSIFIER)}, models_of=dict(cas=("a b",))),
        "config.models: 'a b' cannot be a folder name",
    ),
    "no config": (dict(models=dict(resnet=dict())), "config.models.resnet has no config; set"),
    "no file": (
        dict(models=dict(resnet=dict(config="configs/vgg.py"))),
        "config.models.resnet: --config=configs/vgg.py:arm",
    ),
    "no argument": (
        dict(models=dict(resnet=dict(config="configs/digits/evaluate.py"))),
        "config.models.resnet: --config=configs/digits/evaluate.py:arm=real: ValueError: there is "
        "no argument 'arm'",
    ),
    "override": (dict(overrides=("model.depth=3",)), "the config has no field 'depth'"),
    "value": (dict(overrides=("total_steps=some",)), "config.total_steps"),
    "start": (
        dict(models=dict(resnet=dict(config=CLASSIFIER, init_from="vgg"))),
        "config.models.resnet.init_from must be another of config.models",
    ),
    "own start": (
        dict(models=dict(resnet=dict(config=CLASSIFIER, init_from="resnet"))),
        "config.models.resnet.init_from must be another of config.models",
    ),
    "copies": (dict(copies=0), "config.copies must be at least 1, got 0"),
    "too many copies": (
        dict(copies=3),
        "copies must be at most 2, as in the set, got 3; choose fewer, or generate more",
    ),
    "scaling": (
        dict(studies=("scaling",), scaling_copies=(1, 2)),
        "config.scaling_copies must be 0 (real only) and at least one other number, got (1, 2)",
    ),
    "scaling order": (
        dict(scaling_copies=(0, 2, 1)),
        "increasing whole numbers from 0, got (0, 2, 1)",
    ),
    "scaling size": (
        dict(studies=("scaling",), scaling_copies=(0, 1, 4)),
        "copies must be at most 2, as in the set, got 4",
    ),
    "seeds": (
        dict(seeds=-1),
        "config.seeds must be a number of seeds, or 0 for those of the models' configs",
    ),
    "evaluation": (
        dict(evaluation=dict(config="configs/digits/evaluate.py", set="vest")),
        "config.evaluation.set must be one of test (configs/digits/evaluate.py), got 'vest'",
    ),
    "no evaluation": (
        dict(evaluation=dict(config=CLASSIFIER, set="test")),
        "config.evaluation.config must be a config of classifiers.evaluate, got configs/",
    ),
    "model": (dict(overrides=("model.name=vgg",)), "model.name must be one of resnet"),
}


@pytest.mark.parametrize(("fields", "said"), BAD.values(), ids=BAD)
def test_nonsense_is_refused_before_anything_is_made(site, capsys, fields, said):
    models = dict(resnet=dict(config=CLASSIFIER, overrides=()))
    if "models" not in fields and "models_of" not in fields:
        fields = dict(models=models, models_of=dict(cas=("resnet",), scaling=("resnet",))) | fields
    config = a_config(site, **dict(dict(studies=("cas",)), **fields))
    site.argv = (config, *site.argv[1:])
    assert site.run() == 2
    assert said in one_line(capsys)
    assert not site.workdir.exists() and site.calls() == []


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--config.synthetic=/none"], "/none is not complete (it has no manifest.json)"),
        (["--jobs=0"], "jobs"),
        (["--submit=no-such-program --x"], "--submit: no such program: 'no-such-program'"),
        (["--submit=sh 'c"], "--submit=sh 'c: No closing quotation"),
        (["--python=/none/python"], "--python: no such program: '/none/python'"),
    ],
)
def test_wrong_flags(site, capsys, argv, said):
    assert site.run(*argv) == 2
    assert said in one_line(capsys)
    assert not site.workdir.exists() and site.calls() == []
