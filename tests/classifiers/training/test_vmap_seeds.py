"""Seeds trained at once are those trained in turn, and go on where they were interrupted."""

import jax
import numpy as np
import pytest
from etils import epath

from classifiers import evaluate, train
from classifiers.training import learning_curves, vmap_seeds
from classifiers.training.training import Training
from configs.digits import classifier
from input_pipeline.records.image_codec import decode_image
from launch.files import read_json
from launch.runtime.run import Run
from launch.runtime.training.metrics import column, read_metrics
from tests.support.classifier_mixture import REAL, run
from tests.support.classifier_task import TINY
from tests.support.classifier_task import run as run_task

FIELDS = dict(seeds=2, ema=dict(main=dict(decay=0.5)), evaluate_every=2, label_smoothing=0.0)
VIT = dict(name="vit", width=8, depth=1, num_heads=2, patch_size=4, drop_path=0.1)


def variables(folder, model=None):
    """Inference variables of each seed."""
    config = classifier.get_config("runlocal")
    config.model.update(stage_sizes=(1,), width=4)
    config.model = model or config.model
    config.ema = FIELDS["ema"]
    shapes = Training.of(config, 10, (8, 8, 1)).abstract.variables
    return [Run.open(folder).seeds[seed].variables(shapes) for seed in range(2)]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together") / "run"
    assert run(folder, dict(real=REAL), vmap_seeds=True, **FIELDS) == 0
    return folder


@pytest.mark.slow
def test_seeds_at_once_are_those_in_turn(together, tmp_path):
    assert run(tmp_path / "run", dict(real=REAL), **FIELDS) == 0
    for ours, theirs in zip(variables(together), variables(tmp_path / "run"), strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), ours, theirs)
    lines = [line for line in read_metrics(together / "seeds") if "loss" in line]
    for seed in range(2):
        alone = [line for line in read_metrics(tmp_path / f"run/seed_{seed}") if "loss" in line]
        for line, expected in zip(lines, alone, strict=True):
            assert line[f"loss_by_seed/{seed}"] == pytest.approx(expected["loss"], rel=1e-4)
    for line in lines:
        by_seed = [line[f"accuracy_by_seed/{seed}"] for seed in range(2)]
        assert line["accuracy"] == pytest.approx(np.mean(by_seed))


@pytest.mark.slow
def test_what_is_interrupted_goes_on_bit_for_bit(together, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no space left")

    write = vmap_seeds.write
    monkeypatch.setattr(vmap_seeds, "write", fail)
    with pytest.raises(OSError, match="no space left"):
        run(tmp_path / "run", dict(real=REAL), vmap_seeds=True, **FIELDS)
    # Of the last state one checkpoint is taken away, and a seed was half written.
    monkeypatch.setattr(vmap_seeds, "write", write)
    (folder,) = (tmp_path / "run/seeds/checkpoints").glob("4")
    (folder / "digests_0_of_1.json").unlink()
    (tmp_path / "run/seed_1/checkpoints/4").mkdir(parents=True)
    assert run(tmp_path / "run", dict(real=REAL), vmap_seeds=True, **FIELDS) == 0
    for ours, theirs in zip(variables(tmp_path / "run"), variables(together), strict=True):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.slow
def test_curves(together, tmp_path):
    assert run(tmp_path / "run", dict(real=REAL), **FIELDS) == 0
    for ours, alone in zip(
        learning_curves.read(epath.Path(together), 2),
        learning_curves.read(epath.Path(tmp_path / "run"), 2),
        strict=True,
    ):
        for name in learning_curves.NAMES:
            (steps, values), (expected_steps, expected) = column(ours, name), column(alone, name)
            assert steps.tolist() == expected_steps.tolist() and len(steps) >= 2
            np.testing.assert_allclose(values, expected, atol=1e-4)
    left, right = learning_curves.draw(learning_curves.read(epath.Path(together), 2)).axes
    assert len(left.lines) == 2 and len(right.lines) == 4
    for folder in (together, tmp_path / "run"):
        assert decode_image((folder / "learning_curves.png").read_bytes(), 3).shape[0] > 300


@pytest.mark.slow
def test_a_finished_run_is_evaluated_and_not_written_again(together):
    seal = together / "seed_1" / "checkpoints" / "4" / "digests_0_of_1.json"
    before = seal.stat().st_mtime_ns
    assert run(together, dict(real=REAL), vmap_seeds=True, **FIELDS) == 0
    assert seal.stat().st_mtime_ns == before
    assert run_task(evaluate.main, "evaluate.py:split=validation", together) == 0
    (arm,) = read_json(together / "evaluation_validation.json")["arms"].values()
    last = [line for line in read_metrics(together / "seeds") if "validation_accuracy" in line][-1]
    assert last["step"] == 4
    measured = [last[f"validation_accuracy_by_seed/{seed}"] for seed in range(2)]
    assert arm["accuracies"] == pytest.approx(measured)


@pytest.mark.slow  # Every network and what it drops compiles twice.
def test_other_networks(tmp_path):
    for name, more in (("turn", {}), ("once", dict(vmap_seeds=True))):
        assert run(tmp_path / name, dict(real=REAL), model=VIT, **FIELDS, **more) == 0
    pairs = zip(variables(tmp_path / "once", VIT), variables(tmp_path / "turn", VIT), strict=True)
    for ours, theirs in pairs:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), ours, theirs)


@pytest.mark.slow
def test_the_flag_cannot_change_midway(together, capsys):
    argv = (*TINY, "--config.vmap_seeds=False")
    assert run_task(train.main, "classifier.py:arm=real,runlocal", together, *argv) == 2
    assert "as when" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            dict(best=dict(metric="validation_accuracy", mode="max")),
            "config.best cannot be combined with vmap_seeds",
        ),
        (
            dict(ema=dict(main=dict(decay=0.5), slow=dict(decay=0.9))),
            "config.ema.slow cannot be combined with vmap_seeds, which keeps only 'main'",
        ),
    ],
)
def test_what_is_not_kept_of_each_seed_is_refused(tmp_path, capsys, fields, message):
    assert run(tmp_path / "run", dict(real=REAL), **(FIELDS | fields), vmap_seeds=True) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_preflight_is_of_one_seed(tmp_path, capsys):
    argv = (*TINY, "--config.vmap_seeds=True", "--preflight=v4:2x2x1")
    assert run_task(train.main, "classifier.py:arm=real,runlocal", tmp_path, *argv) == 2
    assert "--preflight compiles the step of one seed" in capsys.readouterr().err
