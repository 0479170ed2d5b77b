"""Training of models that drop something: the same again, and the same when it is resumed."""

import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from classifiers import from_config, train
from classifiers.models import presets
from classifiers.training.training import Training
from configs.digits import classifier
from launch.runtime.run import Run
from launch.runtime.state import TrainState
from launch.runtime.training.metrics import column, read_metrics
from launch.runtime.training.optimizers import make_optimizer
from tests.support.classifier_task import run

VIT = dict(width=8, depth=2, num_heads=2, patch_size=4, pool="mean")
RESNET = dict(stage_sizes=(1,), width=4, bottleneck=False, small_stem=True)
FLAGS = (
    "--config.seeds=1",
    "--config.total_steps=4",
    "--config.batch_size=16",
    "--config.log_every=1",
    "--config.checkpoint_every=2",
    "--config.evaluation_batch_size=50",
)


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def loss_at(model):
    """The loss of one batch and one model as a function of the step."""
    config = classifier.get_config("runlocal")
    tx = make_optimizer(config.optimizer, config.total_steps)
    variables = jax.jit(functools.partial(from_config.init_model, model, image_shape=(8, 8, 1)))(
        jax.random.key(0)
    )
    head = variables["params"]["head"]
    head["kernel"] = jax.random.normal(jax.random.key(1), head["kernel"].shape)
    state = TrainState(jnp.zeros((), jnp.int32), variables, tx.init(variables["params"]), {})
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (16, 8, 8, 1), np.uint8),
        "label": rng.integers(0, 10, 16),
        "domain": np.zeros(16, np.int32),
    }
    training = Training.of(config, 10, (8, 8, 1))
    update = jax.jit(dataclasses.replace(training, model=model, tx=tx).update)
    return lambda step: float(
        update(dataclasses.replace(state, step=jnp.int32(step)), batch)[1]["loss"]
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fields", "drops"),
    [
        ("vit", dict(VIT, drop_path=0.5), True),
        ("resnet", dict(RESNET, dropout=0.5), True),
        ("resnet", RESNET, False),
    ],
)
def test_every_step_drops_others(name, fields, drops):
    loss = loss_at(presets.make(name, 10, **fields))
    assert loss(3) == loss(3)
    assert (len({loss(step) for step in range(4)}) == 4) == drops


def trained(folder):
    """The losses of a run."""
    model = dict(VIT, name="vit", dropout=0.3, drop_path=0.5)
    argv = (f"--config.model={model}", *FLAGS)
    assert run(train.main, "classifier.py:arm=real", folder, *argv) == 0
    return column(read_metrics(folder / "seed_0"), "loss")[1].tolist()


@pytest.mark.slow
def test_a_resumed_run_drops_the_same(tmp_path):
    losses = trained(tmp_path)
    before = Run.open(tmp_path).seeds[0].digest()
    shutil.rmtree(tmp_path / "seed_0" / "checkpoints" / "4")
    assert len(losses) == 4 and trained(tmp_path)[-2:] == losses[-2:]
    assert Run.open(tmp_path).seeds[0].digest() == before


def test_presets_and_their_fields(tmp_path, capsys):
    def dry_run(**fields):
        argv = (f"--config.model={fields}", "--dry_run")
        return run(train.main, "classifier.py:arm=real", tmp_path / "run", *argv)

    assert dry_run(name="deit_s", patch_size=4) == 0
    # DeiT-S has 22,050,664 with 14x14 patches of 16x16 pixels, three channels and 1,000 classes.
    expected = 22_050_664 - 192 * 384 - 384 * (3 * 256 - 16) - 990 * 385
    assert f"{expected:,}" in capsys.readouterr().out
    assert dry_run(name="deit_s", bottleneck=True) == 2
    assert "model 'deit_s' has no field 'bottleneck'" in capsys.readouterr().err
    assert dry_run(patch_size=4) == 2
    assert "config.model has no name" in capsys.readouterr().err


def test_images_that_patches_do_not_divide(tmp_path, capsys):
    model = f"--config.model={dict(VIT, name='vit', patch_size=3)}"
    assert run(train.main, "classifier.py:arm=real", tmp_path / "run", model) == 2
    err = capsys.readouterr().err
    assert "pixels each way, got 8x8" in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()
