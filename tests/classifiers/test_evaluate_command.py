"""classifiers.evaluate through its command line: several runs, sets and attacks in one call."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
import torch
from etils import epath

from classifiers import evaluate, from_config, train
from classifiers.evaluation import run_on_set
from input_pipeline import sources
from input_pipeline.imagenet import lemmas, wordnet_ids
from input_pipeline.sources.digits import DIGIT_NAMES
from launch.errors import InputError
from launch.files import read_json
from launch.runtime.run import Run
from tests.classifiers.evaluation import tiny
from tests.classifiers.evaluation.tiny import FIELDS, model, variables
from tests.support.commands import run

VALIDATION = dict(name="digits", split="validation")
SMALL = dict(name="digits", split="test", per_class=6)
SETS = dict(validation=dict(source=VALIDATION), small=dict(source=SMALL))
ON_SMALL = dict(sets=["small"], num_images=20)
ATTACKS = dict(
    fgsm=dict(kind="fgsm", epsilon=8, **ON_SMALL),
    pgd=dict(kind="pgd", epsilon=8, steps=3, step_size=4, **ON_SMALL),
)
SHOTS = dict(
    source=dict(name="digits", split="pool", long_tail=dict(n_max=90, gamma=9)), many=40, few=15
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, request):
    """Two runs that were trained a little, and evaluated on two sets."""
    folder = epath.Path(tmp_path_factory.mktemp("evaluate")) / "runs"
    argv = (f"--config.model={FIELDS}", "--config.total_steps=60", "--config.log_every=60")
    config = request.config.rootpath / "configs/digits/classifier.py"
    for name, rate in (("real", 0.1), ("other", 0.02)):
        rate = f"--config.optimizer.learning_rate={rate}"
        assert run(train.main, f"{config}:arm=pool,runlocal", folder / name, *argv, rate) == 0
    config = tiny.write_config(folder.parent / "config.py", SETS, ATTACKS, SHOTS)
    assert run(evaluate.main, config, folder) == 0
    return folder


def logits(run, seed, source):
    """Of all images at once."""
    abstract = jax.eval_shape(lambda: variables(0))
    weights = Run.open(run).seeds[seed].variables(abstract)
    images = np.stack([source[i]["image"] for i in range(len(source))])
    return torch.tensor(np.asarray(model().apply(weights, images / np.float32(127.5) - 1)))


def test_results_are_what_torch_says_of_the_outputs(runs):
    for name, spec in SETS.items():
        source = sources.load(spec["source"])
        result = read_json(runs / f"evaluation_{name}.json")
        labels = torch.tensor(source.labels.astype(int))
        assert result["num_images"] == len(source) and result["baseline"] == "real"
        assert result["class_names"] == list(DIGIT_NAMES) and result["name"] == name
        for arm, arm_results in result["arms"].items():
            for seed in range(2):
                said = logits(runs / arm, seed, source)
                right = said.argmax(1) == labels
                assert arm_results["accuracies"][seed] == pytest.approx(float(right.float().mean()))
                top = (said.topk(5).indices == labels[:, None]).any(1)
                assert arm_results["top5"][seed] == pytest.approx(float(top.float().mean()))
                loss = torch.nn.functional.cross_entropy(said, labels)
                assert arm_results["loss"][seed] == pytest.approx(float(loss), rel=1e-4)
                assert 0 < arm_results["calibration_error"][seed] < 1
            assert len(arm_results["per_class"]) == 10
            assert arm_results["mean"] == pytest.approx(np.mean(arm_results["per_class"]))
            assert sum(arm_results["calibration"]["count"]) == 2 * len(source)
        accuracies = {name: arm["accuracies"] for name, arm in result["arms"].items()}
        assert accuracies["real"] != accuracies["other"] and min(accuracies["real"]) > 0.12
        assert result["arms"]["real"]["p_value"] is None


def test_attacks_are_on_their_set_alone(runs):
    arms = read_json(runs / "evaluation_validation.json")["arms"]
    assert all(arm["attacks"] == {} for arm in arms.values())
    source = sources.load(SMALL)
    for name, arm in read_json(runs / "evaluation_small.json")["arms"].items():
        fgsm, pgd = arm["attacks"]["fgsm"], arm["attacks"]["pgd"]
        for seed in range(2):
            # Of 60 images sorted by class every third.
            right = logits(runs / name, seed, source).argmax(1).numpy() == source.labels
            assert fgsm["clean_accuracies"][seed] == pytest.approx(right[::3].mean())
            assert pgd["accuracies"][seed] <= fgsm["accuracies"][seed]
            assert fgsm["accuracies"][seed] <= fgsm["clean_accuracies"][seed]
        assert (fgsm["num_images"], pgd["num_images"]) == (20, 20)
        assert fgsm["mean"] == pytest.approx(np.mean(fgsm["accuracies"]))
        assert fgsm["mean"] < np.mean(fgsm["clean_accuracies"])


def test_classes_by_their_images_of_training(runs):
    counts = [int(90 * 9 ** (-k / 9) + 1e-9) for k in range(10)]
    assert sum(n > 40 for n in counts) == 4 and sum(n < 15 for n in counts) == 2
    for name in SETS:
        for arm in read_json(runs / f"evaluation_{name}.json")["arms"].values():
            per_class = arm["per_class"]
            assert arm["many"] == pytest.approx(np.mean(per_class[:4]))
            assert arm["medium"] == pytest.approx(np.mean(per_class[4:8]))
            assert arm["few"] == pytest.approx(np.mean(per_class[8:]))


def results(runs):
    return {name: read_json(runs / f"evaluation_{name}.json") for name in SETS}


@pytest.fixture
def copied(runs, tmp_path):
    """The same folder, to be changed."""
    shutil.copytree(runs, tmp_path / "runs")
    return epath.Path(tmp_path / "runs")


@pytest.fixture
def again(copied, monkeypatch):
    """Runs the command again, with other fields; the seeds whose work was done."""

    def command(sets=SETS, attacks=ATTACKS, code=0, **fields):
        done = []
        make = run_on_set.RunOnSet._make

        def counted(self, seed):
            done.append((self._run.name, self._set.name, seed))
            return make(self, seed)

        with monkeypatch.context() as patch:
            patch.setattr(run_on_set.RunOnSet, "_make", counted)
            config = tiny.write_config(copied.parent / "again.py", sets, attacks, SHOTS)
            argv = [f"--config.{name}={value}" for name, value in fields.items()]
            assert run(evaluate.main, config, copied, *argv) == code
        return done

    return command


def test_what_is_done_is_not_done_again(runs, copied, again):
    assert again() == [] and results(copied) == results(runs)
    # Batches and the baseline change nothing that is kept.
    assert again(sets={"small": SETS["small"]}, batch_size=13, baseline="other") == []
    arms = results(copied)["small"]["arms"]
    assert arms["other"]["p_value"] is None
    assert arms["real"]["loss"] == results(runs)["small"]["arms"]["real"]["loss"]


def test_what_has_changed_is_done(runs, copied, again):
    stronger = {**ATTACKS, "fgsm": dict(ATTACKS["fgsm"], epsilon=30)}
    small = [(name, "small", seed) for name in ("other", "real") for seed in range(2)]
    assert again(attacks=stronger) == small
    after, before = results(copied), results(runs)
    assert after["validation"] == before["validation"]
    for name, arm in before["small"]["arms"].items():
        arm_after = after["small"]["arms"][name]
        assert arm_after["accuracies"] == arm["accuracies"]
        assert arm_after["attacks"]["pgd"] == arm["attacks"]["pgd"]
        assert arm_after["attacks"]["fgsm"]["mean"] < arm["attacks"]["fgsm"]["mean"]


def test_other_bins_are_other_results(copied, again):
    sets = {"validation": SETS["validation"]}
    assert len(again(sets=sets, attacks={}, calibration_bins=4)) == 4
    calibration = results(copied)["validation"]["arms"]["real"]["calibration"]
    assert len(calibration["count"]) == 4


def test_an_interrupted_command_goes_on(runs, copied, again, monkeypatch):
    kept = copied / "evaluations" / "small"
    for path in kept.iterdir():
        path.unlink()
    make = run_on_set.RunOnSet._make

    def interrupted(self, seed):
        if self._run.name == "real" and seed == 1:
            raise KeyboardInterrupt
        return make(self, seed)

    with monkeypatch.context() as patch:
        patch.setattr(run_on_set.RunOnSet, "_make", interrupted)
        again(code=130)
    assert sorted(path.name for path in kept.iterdir()) == [
        "other-seed_0.json", "other-seed_1.json", "real-seed_0.json",
    ]  # fmt: skip
    assert again() == [("real", "small", 1)]
    assert results(copied) == results(runs)


def test_damaged_results_are_made_again(runs, copied, again):
    path = copied / "evaluations" / "validation" / "real-seed_1.json"
    path.write_text(path.read_text().replace("0.", "1.", 1))
    assert again() == [("real", "validation", 1)] and results(copied) == results(runs)


@pytest.mark.slow
def test_runs_elsewhere_and_other_weights(runs, tmp_path):
    config = tiny.write_config(tmp_path / "config.py", {"small": SETS["small"]})
    workdir, evaluations = tmp_path / "results", []
    for folder in ("old", "new"):
        seed = len(evaluations)
        tiny.write_run(tmp_path / folder / "real", variables(seed), model=FIELDS)
        elsewhere = repr((str(tmp_path / folder), str(runs / "other")))
        assert run(evaluate.main, config, workdir, f"--config.runs={elsewhere}") == 0
        evaluations.append(read_json(workdir / "evaluation_small.json")["arms"])
        assert set(evaluations[-1]) == {"real", "other"}
    # A finished run of the same name with other weights has taken its place.
    assert evaluations[0]["other"] == evaluations[1]["other"]
    assert evaluations[0]["real"]["loss"] != evaluations[1]["real"]["loss"]
    assert evaluations[0]["real"]["checkpoints"] != evaluations[1]["real"]["checkpoints"]


def one_line(capsys):
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err


WRONG = {
    "missing set": (
        dict(sets=dict(v2=dict(source=dict(name="image_folder", path="no/v2"), prepare="unpack"))),
        "config.sets.v2: no/v2 does not exist; check path and root; to prepare the set: unpack",
    ),
    "other classes": (
        dict(sets=dict(two=dict(source=dict(VALIDATION, classes=[0, 1])))),
        "was trained for 10 classes, the set has 2",
    ),
    "other model": (
        dict(sets=dict(r=dict(source=VALIDATION, label_map="imagenet_r"))),
        "label_map='imagenet_r' needs 200 classes, n01443537, n01484850, ..., but the set",
    ),
    "attack": (
        dict(attacks=dict(a=dict(kind="pgd", epsilon=1))),
        "config.attacks.a.steps must be a whole number above 0, got None",
    ),
    "attack of no set": (
        dict(attacks=dict(a=dict(kind="fgsm", epsilon=1, sets=["train"]))),
        "config.attacks.a.sets must be some of small, validation, got 'train'",
    ),
    "images of an attack": (
        dict(attacks=dict(a=dict(kind="fgsm", epsilon=1, num_images=-1))),
        "config.attacks.a.num_images must be a number, or 0 for all, got -1",
    ),
    "shots": (
        dict(shots=dict(SHOTS, few=100)),
        "config.shots must have few above 0 and many at least as large, got few=100",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_configs(name, tmp_path, capsys):
    fields, said = WRONG[name]
    tiny.write_run(tmp_path / "runs" / "real", variables(0), model=FIELDS)
    config = tiny.write_config(tmp_path / "config.py", **{"sets": SETS, **fields})
    assert run(evaluate.main, config, tmp_path / "runs") == 2
    assert said in one_line(capsys)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["real"]


def test_wrong_runs(runs, tmp_path, capsys):
    config = tiny.write_config(tmp_path / "config.py", SETS)
    argv = ("--config.checkpoint.best=True",)
    assert run(evaluate.main, config, runs, *argv) == 2
    assert "best has no best checkpoint; train with config.best, or use the last" in one_line(
        capsys
    )
    assert run(evaluate.main, config, runs, "--config.checkpoint.ema=slow") == 2
    assert "ema must be one of main, got 'slow'" in one_line(capsys)
    twice = tiny.write_run(tmp_path / "twice" / "real", variables(0), model=FIELDS)
    assert run(evaluate.main, config, runs, f"--config.runs=('{twice}',)") == 2
    assert f"two runs have the name real: {runs / 'real'} and {twice}" in one_line(capsys)
    for field in ("batch_size", "calibration_bins"):
        assert run(evaluate.main, config, runs, f"--config.{field}=0") == 2
        assert f"config.{field} must be at least 1, got 0" in one_line(capsys)


def test_outputs_that_are_not_finite(tmp_path, capsys):
    broken = jax.tree.map(lambda x: np.full_like(x, np.nan), variables(0))
    tiny.write_run(tmp_path / "runs" / "real", broken, model=FIELDS)
    config = tiny.write_config(tmp_path / "config.py", SETS)
    assert run(evaluate.main, config, tmp_path / "runs") == 2
    *progress, err = capsys.readouterr().err.splitlines()
    # Images are counted in whole ones; rates may have fractions.
    assert progress and not re.search(r"\d\.\d+(/|image \[)", "".join(progress))
    assert "real/seed_0: its outputs on small are NaN or infinite; leave this run out" in err
    assert not list((tmp_path / "runs").glob("evaluation[_.]*"))


def test_a_dry_run_counts_parameters(runs, capsys):
    config = runs.parent / "config.py"
    assert run(evaluate.main, config, runs, "--dry_run") == 0
    out = capsys.readouterr().out
    count = sum(x.size for x in jax.tree.leaves(variables(0)["params"]))
    assert f"real: {count:,} parameters" in out and f"other: {count:,} parameters" in out


def test_names_of_classes_are_compared(tmp_path, capsys):
    folder = epath.Path(tiny.write_run(tmp_path / "runs" / "real", variables(0), model=FIELDS))
    config = tiny.write_config(tmp_path / "config.py", SETS)
    from_config.save_class_names(folder, list(DIGIT_NAMES)[::-1])
    assert run(evaluate.main, config, tmp_path / "runs") == 2
    assert "config.sets.small: label 0 must be 'nine', as for " in one_line(capsys)
    (folder / "class_names.json").write_text("[")
    with pytest.raises(InputError, match="not JSON"):
        from_config.load_class_names(folder)
    from_config.save_class_names(folder, lemmas())
    assert from_config.load_class_names(folder) == list(wordnet_ids())
    (folder / "class_names.json").write_text(json.dumps(DIGIT_NAMES))
    assert run(evaluate.main, config, tmp_path / "runs") == 0
