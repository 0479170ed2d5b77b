"""Training and evaluation through their command lines, on real digits with a tiny network."""

import json

import pytest

from classifiers import evaluate, train
from classifiers.training import train_seeds
from input_pipeline import sources
from input_pipeline.sources.digits import digits
from launch.files import read_json
from launch.runtime.run import Run
from launch.runtime.training.metrics import column, read_metrics
from tests.support.classifier_task import TINY, run
from tests.support.openings import count_openings
from tests.support.written_runs import write_run


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


@pytest.fixture(scope="module")
def arms(tmp_path_factory, request):
    """Two equal runs, and one with another rate."""
    folder = tmp_path_factory.mktemp("arms")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(request.config.rootpath)
        config = "classifier.py:arm=real,runlocal"
        for name in ("real", "again"):
            assert run(train.main, config, folder / name, *TINY) == 0
        argv = (*TINY, "--config.optimizer.learning_rate=0.5")
        assert run(train.main, config, folder / "other", *argv) == 0
        assert run(evaluate.main, "evaluate.py:split=validation", folder) == 0
    return folder


def test_training_leaves_its_seeds(arms):
    assert read_json(arms / "real" / "config.json")["model"]["width"] == 4
    for seed in range(2):
        folder = arms / "real" / f"seed_{seed}"
        lines = read_metrics(folder)
        assert [line["step"] for line in lines] == [2, 4, 4, 4]
        assert 0 < lines[0]["loss"] < 10 and 0 <= lines[0]["accuracy"] <= 1
        assert 0 <= lines[2]["validation_accuracy"] <= 1
        assert lines[3]["checkpoint_seconds"] > 0
        assert (folder / "checkpoints" / "4" / "digests_0_of_1.json").exists()


def test_evaluation_compares_the_arms(arms, capsys):
    result = read_json(arms / "evaluation_validation.json")
    assert (result["name"], result["num_images"], result["baseline"]) == ("validation", 100, "real")
    assert result["class_names"][:2] == ["zero", "one"]
    assert set(result["arms"]) == {"real", "again", "other"}
    for name, arm in result["arms"].items():
        assert len(arm["accuracies"]) == 2 and len(arm["per_class"]) == 10
        assert arm["mean"] == pytest.approx(sum(arm["accuracies"]) / 2)
        # Ten images a class.
        assert arm["mean"] == pytest.approx(sum(arm["per_class"]) / 10)
        # What training has measured at its end.
        for seed, accuracy in enumerate(arm["accuracies"]):
            measured = column(read_metrics(arms / name / f"seed_{seed}"), "validation_accuracy")[1]
            assert measured.tolist() == [pytest.approx(accuracy)]


def test_the_same_seeds_give_the_same_classifiers(arms):
    found = read_json(arms / "evaluation_validation.json")["arms"]
    assert found["real"]["accuracies"] == found["again"]["accuracies"]
    assert found["again"]["p_value"] is None
    for seed in range(2):
        ours, theirs = (
            arms / name / f"seed_{seed}" / "metrics.jsonl" for name in ("real", "again")
        )
        assert losses(ours) == losses(theirs)
    seeds = [losses(arms / "real" / f"seed_{seed}" / "metrics.jsonl") for seed in range(2)]
    assert seeds[0] != seeds[1]
    assert losses(arms / "other" / "seed_0" / "metrics.jsonl") != seeds[0]


def test_every_seed_has_its_own_order_and_start(tmp_path, monkeypatch):
    fits, opened = [], count_openings(monkeypatch)
    monkeypatch.setattr(train_seeds, "fit", lambda **arguments: fits.append(arguments))
    assert run(train.main, "classifier.py:arm=real,runlocal", tmp_path / "run", *TINY) == 0
    assert [fit["workdir"].name for fit in fits] == ["seed_0", "seed_1"]
    assert [spec["split"] for spec in opened] == ["validation", "train"]  # each once
    first, second = (next(iter(fit["batches"](0, 1)))["image"] for fit in fits)
    assert first.shape == (16, 8, 8, 1)
    # The two draw from 30 images in another order, and shift them otherwise.
    assert (first != second).any()
    weights = [fit["create"]().variables["params"]["head"]["kernel"] for fit in fits]
    assert (weights[0] != weights[1]).any()


def losses(path):
    return [json.loads(line).get("loss") for line in path.read_text().splitlines()]


def one_line(capsys):
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


def test_a_missing_synthetic_set(tmp_path, capsys):
    path = f"--config.train_sources.synthetic.path={tmp_path / 'none'}"
    config = "classifier.py:arm=real+synthetic,k=2"
    assert run(train.main, config, tmp_path / "run", path) == 2
    assert str(tmp_path / "none") in one_line(capsys)
    assert not (tmp_path / "run").exists()


def test_another_config_in_the_same_work_directory(arms, capsys):
    config = "classifier.py:arm=real,runlocal"
    assert run(train.main, config, arms / "real", *TINY, "--config.batch_size=8") == 2
    assert "batch_size must be 16, as when" in one_line(capsys)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("evaluation_batch_size=0", "config.evaluation_batch_size must be at least 1, got 0"),
        (
            "optimizer.learning_rate=-1.0",
            "optimizer.learning_rate must be a number of at least 0, got -1.0",
        ),
        (
            "optimizer.learning_rate must be a number of at least 0, got nan",
            "optimizer.learning_rate must be a number of at least 0, got nan",
        ),
        (
            "optimizer.weight_decay must be a number of at least 0, got -1.0",
            "optimizer.weight_decay must be a number of at least 0, got -1.0",
        ),
        (
            "optimizer.warmup_steps must be at least 0, got -3",
            "optimizer.warmup_steps must be at least 0, got -3",
        ),
    ],
)
def test_wrong_numbers(tmp_path, capsys, flag, message):
    config = "classifier.py:arm=real,runlocal"
    assert run(train.main, config, tmp_path / "run", *TINY, f"--config.{flag}") == 2
    assert message in one_line(capsys) and not (tmp_path / "run").exists()


def test_a_label_that_is_no_class(tmp_path, capsys, monkeypatch):
    images = digits("train")
    images.labels[3] = 10
    monkeypatch.setattr(sources, "load", lambda spec: images)
    assert run(train.main, "classifier.py:arm=real,runlocal", tmp_path / "run", *TINY) == 2
    assert "image 0/train:3: its label must be below the 10 classes, got 10" in one_line(capsys)
    assert not (tmp_path / "run").exists()


def test_nothing_to_evaluate(tmp_path, capsys):
    assert run(evaluate.main, "evaluate.py", tmp_path) == 2
    assert "has no run of classifiers.train" in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_run(arms, tmp_path, capsys):
    """Its checkpoint is of an earlier step than its config asks for."""
    finished = Run.open(arms / "real")
    seed = finished.seeds[0]
    config = finished.config.to_dict() | {"total_steps": 5, "seeds": 1}
    write_run(tmp_path / "real", config, seed.variables(seed.shapes()))
    assert run(evaluate.main, "evaluate.py:split=validation", tmp_path) == 2
    assert "real/seed_0 is at step 0 of 5" in capsys.readouterr().err
