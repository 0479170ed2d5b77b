"""classifiers.train_clip through its command line, on digits."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from classifiers import train_clip
from classifiers.clip.run import ClipRun
from classifiers.contrastive.training import _bounded_scale
from classifiers.extractors.clip import apply_to_images
from launch.errors import InputError
from launch.runtime.training.metrics import read_metrics
from tests.support.commands import run

TINY = "configs/clip/tiny.py"
SMALL = (
    "--config.clip.image.width=16",
    "--config.clip.text.width=16",
    "--config.clip.text.mlp_width=16",
    "--config.batch_size=20",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip") / "run"
    assert run(train_clip.main, f"{TINY}:runlocal", folder, *SMALL) == 0
    return folder


def test_a_run_can_be_used(trained, capsys):
    lines = read_metrics(trained)
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6]
    assert all(math.isfinite(line["loss"]) for line in lines if "loss" in line)
    accuracies = [line["zero_shot_accuracy"] for line in lines if "zero_shot_accuracy" in line]
    assert len(accuracies) == 2 and all(0 <= accuracy <= 1 for accuracy in accuracies)
    assert (trained / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    opened = ClipRun.open(trained)
    assert opened.tokenizer(["seven"]).shape == (1, 26)
    with pytest.raises(InputError, match="images must be grey for this CLIP, got 3 channels"):
        apply_to_images(opened.model, opened.variables, jnp.zeros((1, 8, 8, 3), jnp.uint8))
    scale = np.exp(np.asarray(opened.variables["params"]["logit_scale"]))
    assert scale == pytest.approx(1 / 0.07, rel=0.1) and scale != pytest.approx(1 / 0.07, rel=1e-6)
    assert run(train_clip.main, f"{TINY}:runlocal", trained, *SMALL) == 0
    assert "done" in capsys.readouterr().err


@pytest.mark.slow
def test_training_begins_with_another_run(trained, tmp_path, capsys):
    start = f"--config.init_from={trained}"
    steps = ("--config.total_steps=1", "--config.optimizer.warmup_steps=0")
    assert run(train_clip.main, f"{TINY}:runlocal", tmp_path / "next", *SMALL, start, *steps) == 0
    begun, ended = (ClipRun.open(path).variables["params"] for path in (trained, tmp_path / "next"))
    kernel = lambda params: np.asarray(params["image_projection"]["kernel"])  # noqa: E731
    # One step of Adam is of about the rate, 2e-3, from there.
    assert 0 < np.abs(kernel(begun) - kernel(ended)).max() < 5e-3
    inputs = json.loads((tmp_path / "next" / "inputs.json").read_text())
    assert inputs["init_from"] == ClipRun.open(trained).digest
    capsys.readouterr()
    width = "--config.clip.projection_width=32"
    assert run(train_clip.main, f"{TINY}:runlocal", tmp_path / "x", start, *SMALL, width) == 2
    assert ", as in init_from=" in capsys.readouterr().err
    size = ("--config.evaluation.size=10", "--config.augment.size=10")
    assert run(train_clip.main, f"{TINY}:runlocal", tmp_path / "x", start, *SMALL, *size) == 2
    assert "must be trained on images of 10 px with 1 channels" in capsys.readouterr().err
    assert not (tmp_path / "x" / "config.json").exists()


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("channels=3", "config.channels must be 1, as in config.evaluation_source, got 3"),
        ("tokenizer=", "config.tokenizer must be the folder of a tokenizer, or 'bytes'"),
        ("clip.text.vocab_size=300", "config.clip.text must have vocab_size at least 514"),
        ("clip.image.patch_size=3", "pixels each way, got 8x8"),
        ("augment.size=10", "config.train_sources.real must have images of 8x8x1, as"),
        ("loss_chunk=-1", "config.loss_chunk must be at least 0, got -1"),
        ("draw=some", "config.draw must be one of union, one_of_each, got 'some'"),
        ("templates=9", "templates must be 1, 7, 80 or a list of sentences with {}, got '9'"),
        ("synthetic_weight=2.0", "synthetic_weight must be the synthetic share of every batch"),
    ],
)
def test_wrong_input_ends_with_one_line(flag, said, tmp_path, capsys):
    workdir = tmp_path / "run"
    assert run(train_clip.main, f"{TINY}:runlocal", workdir, f"--config.{flag}") == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(error) == 1 and said in error[0]
    assert not (workdir / "config.json").exists()


def test_the_scale_stays_between_1_and_100():
    update = _bounded_scale().update
    for scale, step, expected in ((4.6, 1.0, math.log(100)), (0.1, -1.0, 0.0), (2.0, 0.5, 2.5)):
        params = {"logit_scale": jnp.array([scale]), "other": jnp.ones(2)}
        updates = {"logit_scale": jnp.array([step]), "other": jnp.full(2, 9.0)}
        moved, _ = update(updates, None, params)
        assert float(scale + moved["logit_scale"][0]) == pytest.approx(expected, abs=1e-6)
        assert moved["other"].tolist() == [9.0, 9.0]


@pytest.mark.slow
def test_digits_are_found_by_their_names(tmp_path):
    """Held-out digits, which neither training nor any choice has seen."""
    test = ("--config.evaluation_source.split=test", "--config.evaluate_every=0")
    assert run(train_clip.main, TINY, tmp_path / "run", *test) == 0
    (accuracy,) = [
        x for line in read_metrics(tmp_path / "run") if (x := line.get("zero_shot_accuracy"))
    ]
    assert accuracy >= 0.9
