"""The noising of a batch, the update and the evaluation, on a linear network."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from ml_collections import ConfigDict

from configs.digits import pretrain_sr8
from imagen_ft.diffusion.denoiser import Denoiser
from imagen_ft.diffusion.forward_process import add_noise
from imagen_ft.diffusion.losses import DiffusionLoss
from imagen_ft.diffusion.schedule import Cosine, SquaredCos
from imagen_ft.models.unet import Context
from imagen_ft.text.encoders import make_text_encoder
from imagen_ft.training import train_stage
from imagen_ft.training.image_losses import draw_inputs, image_losses, shrink
from imagen_ft.training.images import evaluation_transform, open_images
from imagen_ft.training.training import Training
from input_pipeline import sources
from input_pipeline.source import ArraySource
from launch.errors import InputError
from launch.runtime.devices.mesh import make_mesh
from launch.runtime.images import to_float
from launch.runtime.state import abstract_state, create_state
from tests.imagen_ft import tiny_training
from tests.support import ROOT
from tests.support.libtpu import needs_libtpu
from tests.support.openings import count_openings

BATCH = 12
TEXT = jnp.float32([[[1.0]], [[2.0]], [[3.0]]])  # three classes, one token of one channel
NULL = jnp.float32([[7.0]])


class Linear(nn.Module):
    """w x + what it is told of text, noise level and time, where `b` scales these."""

    noise_level: bool = False
    dtype: str = "float32"

    def setup(self):
        self.w = self.param("w", nn.initializers.constant(0.5), ())
        self.b = self.param("b", nn.initializers.constant(0.1), ())

    def __call__(self, x, t, text, noise_level=None):
        return self.denoise(x, t, self.context(text, noise_level))

    def context(self, text, noise_level=None):
        level = 0.0 if noise_level is None else noise_level / 1000
        return Context((text[:, 0, 0] + level,), ())

    def denoise(self, x, t, context):
        told = context.embedding[0] + t / 1000
        return self.w * x[..., :1] + self.b * told[:, None, None, None]


def denoiser(schedule=None, low_size=0):
    return Denoiser(Linear(low_size > 0), schedule or Cosine(), 4, low_size, 1)


def batch_of(seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (BATCH, 4, 4, 1)).astype(np.uint8)
    return dict(image=image, label=np.arange(BATCH) % 3)


def test_times_of_a_discrete_schedule_are_its_steps():
    inputs = draw_inputs(denoiser(SquaredCos(8), 2), batch_of(), jax.random.key(0))
    steps, levels = np.asarray(inputs["t"]) * 8, np.asarray(inputs["level"]) * 8
    # Stratified: twelve images over eight steps take each once or twice, from 1 to 8.
    assert sorted(set(steps)) == list(range(1, 9))
    assert set(levels) <= set(range(1, 9)) and len(set(levels)) > 3
    continuous = draw_inputs(denoiser(), batch_of(), jax.random.key(0))
    assert set(continuous) == {"image", "label", "t", "eps"}
    gaps = np.diff(np.sort(continuous["t"]))
    np.testing.assert_allclose(gaps, 1 / BATCH, atol=1e-6)


def test_losses_of_a_super_resolution_stage():
    stage = denoiser(low_size=2)
    variables = {"params": {"w": jnp.float32(0.5), "b": jnp.float32(0.1)}}
    inputs = draw_inputs(stage, batch_of(), jax.random.key(1))
    text = TEXT[inputs["label"]]
    losses = image_losses(stage, DiffusionLoss(), variables, inputs, text)["loss"]
    for n in range(BATCH):
        one = {name: values[n : n + 1] for name, values in inputs.items()}
        x_t = add_noise(to_float(one["image"]), one["eps"], stage.schedule.logsnr(one["t"]))
        told = text[n, 0, 0] + one["level"][0] + one["t"][0]
        expected = float(jnp.mean((0.5 * x_t + 0.1 * told - one["eps"]) ** 2))
        assert losses[n] == pytest.approx(expected, rel=1e-5)


def test_shrink_takes_means_of_blocks():
    images = jnp.arange(16.0).reshape(1, 4, 4, 1)
    small = shrink(images, 2)[0, :, :, 0]
    assert small.tolist() == [[2.5, 4.5], [10.5, 12.5]]


def config_of(**fields):
    return ConfigDict(dict(seed=0, text_drop=0.0, accumulation=1) | fields)


def updated(steps=1, frozen=False, rate=0.1, **fields):
    """The parameters and metrics after some steps."""
    stage, config, tx = denoiser(low_size=2), config_of(**fields), optax.sgd(rate)
    kept = {"params": {"w": False, "b": frozen}}["params"]
    mesh, init = make_mesh({"data": -1}), lambda key: stage.init(key, NULL)
    args = (init, (jax.random.key(0),), tx, ())
    training = Training(
        config=config,
        denoiser=stage,
        loss=DiffusionLoss(),
        text_shape=NULL.shape,
        class_names=(),
        tx=tx,
        schedule=lambda step: 0.1 * step,
        decays={},
        lora=None,
        frozen=kept,
        abstract=abstract_state(*args),
    )
    step = training.step(mesh, TEXT, NULL)
    with jax.set_mesh(mesh):
        state = create_state(*args, mesh)
        for k in range(steps):
            state, metrics = step(state, batch_of(k))
    return state.variables["params"], jax.device_get(metrics)


def test_an_update_follows_the_gradient():
    params, metrics = updated()
    stage = denoiser(low_size=2)
    key = jax.random.split(jax.random.fold_in(jax.random.key(0), 0))[1]
    inputs = draw_inputs(stage, batch_of(), key)

    def loss_of(params):
        text = TEXT[inputs["label"]]
        losses = image_losses(stage, DiffusionLoss(), {"params": params}, inputs, text)
        return losses["loss"].mean()

    start = {"w": jnp.float32(0.5), "b": jnp.float32(0.1)}
    loss, grads = jax.value_and_grad(loss_of)(start)
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-5)
    for name, grad in grads.items():
        assert params[name] == pytest.approx(float(start[name] - 0.1 * grad), rel=1e-5)
    norm = np.hypot(*grads.values())
    assert metrics["gradient_norm"] == pytest.approx(norm, rel=1e-5)
    assert metrics["update_norm"] == pytest.approx(0.1 * norm, rel=1e-5)
    assert metrics["loss_by_level"].shape == (10,)
    assert np.nanmean(metrics["loss_by_level"]) == pytest.approx(float(loss), rel=0.5)
    assert metrics["learning_rate"] == 0 and updated(3)[1]["learning_rate"] == np.float32(0.2)


@pytest.mark.slow
def test_parts_of_a_batch_make_the_same_update():
    whole, metrics = updated(3)
    split, split_metrics = updated(3, accumulation=4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), whole, split)
    for name, value in metrics.items():
        np.testing.assert_allclose(value, split_metrics[name], rtol=1e-4, err_msg=name)


def test_steps_and_seeds_have_their_own_noise():
    losses = [updated(1, seed=seed)[1]["loss"] for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    # The same batch again would give the same loss, without a step's own noise.
    stage = denoiser()
    keys = [jax.random.fold_in(jax.random.key(0), step) for step in (0, 1)]
    first, second = (draw_inputs(stage, batch_of(), key)["eps"] for key in keys)
    assert np.abs(first - second).min() > 0


def test_dropped_text_is_the_null_text():
    # Without noise in the data, only the text differs.
    kept, dropped, none = (updated(text_drop=p)[1]["loss"] for p in (0.0, 0.5, 1.0))
    assert len({float(kept), float(dropped), float(none)}) == 3
    assert none > kept  # the null text is far off


def test_frozen_parameters_stay():
    params, metrics = updated(2, frozen=True)
    assert params["b"] == np.float32(0.1) and params["w"] != 0.5
    assert metrics["gradient_norm"] != updated(2)[1]["gradient_norm"]


def digits(**fields):
    config = pretrain_sr8.get_config()
    config.train_source.split, config.total_steps, config.batch_size = "train", 4, 8
    for name, value in fields.items():
        config[name] = value
    return config


def test_crops_are_the_same_network():
    whole, crop = Training.of(digits()), Training.of(digits(crop_size=4))
    assert (crop.denoiser.size, crop.denoiser.low_size) == (4, 2)
    ours, theirs = (
        dataclasses.replace(found.denoiser, size=8, low_size=4) for found in (whole, crop)
    )
    assert ours == theirs
    assert jax.tree.structure(whole.abstract) == jax.tree.structure(crop.abstract)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(crop_size=5), r"config\.crop_size must be .*got 5"),
        (dict(crop_size=16), r"config\.crop_size must be .*got 16"),
        (
            dict(accumulation=3),
            r"config\.accumulation must divide batch_size=8 .* got 3",
        ),
        (
            dict(accumulation=0),
            r"config\.accumulation must divide batch_size=8 .* got 0",
        ),
        (dict(text_drop=1.5), r"config\.text_drop must be in \[0, 1\], got 1\.5"),
        (
            dict(best=ConfigDict(dict(metric="loss", mode="least"))),
            r"config\.best\.mode must be 'min' or 'max', got 'least'",
        ),
        (
            dict(best=ConfigDict(dict(metric="validation_los", mode="min"))),
            r"config\.best\.metric must be one of validation_loss, got 'validation_los'",
        ),
        (dict(evaluation_draws=0), r"config\.evaluation_draws must be at least 1, got 0"),
        (dict(evaluation_batch_size=0), r"config\.evaluation_batch_size must be at least 1, got 0"),
        (
            dict(pictures_every=1, pictures=ConfigDict(dict(count=0))),
            r"config\.pictures\.count must be at least 1, got 0",
        ),
        (dict(frozen=("nowhere",)), "'nowhere' matches no parameter"),
        (dict(ema=ConfigDict(dict(slow=dict(decay=0.9)))), "config.ema must have 'main'"),
    ],
)
def test_wrong_numbers_are_named(fields, message):
    with pytest.raises(InputError, match=message):
        Training.of(digits(**fields)).check(make_mesh({"data": -1}))


def test_crops_are_watched_on_crops():
    """Not on whole images made small: what is drawn and evaluated is as large as in training."""
    image = np.zeros((40, 32, 1), np.uint8)
    image[16:24, 12:20] = 255
    config = digits(crop_size=8)
    config.stage.size, config.stage.low_size = 32, 16
    example = evaluation_transform(Training.of(config))({"image": image, "label": 3})
    assert example["label"] == 3 and example["image"].shape == (8, 8, 1)
    assert example["image"].min() == 255


def test_labels_mean_the_same_in_evaluation(monkeypatch):
    images = np.zeros((2, 8, 8, 1), np.uint8)
    names = dict(train=("cat", "dog"), validation=("ant", "cat"))
    load = lambda spec: ArraySource(images, np.arange(2), names[spec["split"]])  # noqa: E731
    monkeypatch.setattr(sources, "load", load)
    with pytest.raises(InputError, match=r"lacks 1 of the 2 classes of .*: 'dog'; add"):
        open_images(Training.of(digits(class_names=())))


def test_every_source_is_opened_once(monkeypatch, tmp_path):
    """For batches, evaluation, pictures and digests alike."""
    opened, fits = count_openings(monkeypatch), []
    monkeypatch.setattr(train_stage, "fit", lambda **arguments: fits.append(arguments))
    config = tiny_training.get_config()
    training, mesh = Training.of(config), make_mesh(config.mesh)
    encoder = make_text_encoder(config.text)
    train_stage.train_stage(training, encoder, mesh, epath.Path(tmp_path) / "run")
    assert [spec["split"] for spec in opened] == ["train", "validation"]
    assert fits[0]["pictures"] is not None


@needs_libtpu
@pytest.mark.slow  # Compiling the step of a small network for a TPU takes two minutes.
def test_preflight_is_of_the_real_step():
    config = "configs/cifar10/finetune_base16.py:runlocal"
    command = [sys.executable, "-m", "imagen_ft.finetune", f"--config={config}"]
    done = subprocess.run(
        [*command, "--preflight=v5e:2x2"],
        cwd=ROOT,
        env=os.environ | {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    estimate = json.loads(done.stdout.splitlines()[-1])
    assert estimate["fits"] and 0 < estimate["floor_seconds"] < estimate["estimated_seconds"]
    assert re.search(r"^all-reduce +data ", done.stdout, re.MULTILINE)
    assert "text_table" not in done.stdout


@pytest.mark.parametrize(
    ("low_size", "call"),
    [
        (0, "Cascade.load('runs/a').sample('seven') of "),
        (4, "Cascade.load(['RUN of 4 px', 'runs/a']).sample('seven') of "),
    ],
)
def test_what_to_do_next(low_size, call):
    assert call in train_stage.what_next(epath.Path("runs/a"), low_size, "seven")
