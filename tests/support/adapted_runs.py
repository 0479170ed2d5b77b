"""Runs of adapters and of their base models, with random weights instead of training."""

import jax
import numpy as np

from imagen_ft.text.encoders import make_text_encoder
from imagen_ft.training.training import Training
from imagen_ft.training.warm_start import check_start
from launch.runtime.checkpoints.checkpoint import save_inference
from launch.runtime.config import plain
from launch.runtime.run import Run
from launch.runtime.run_record import write_record
from tests.imagen_ft import tiny_training

RANK, ALPHA = 2, 3.0


def get_config(base="", **fields):
    config = tiny_training.get_config()
    config.total_steps, config.init_from = 3, str(base)
    config.pictures_every, config.checkpoint_every, config.evaluate_every = 0, 3, 0
    config.ema, config.best = {}, {}
    if base:
        config.lora = dict(rank=RANK, alpha=ALPHA) | fields
    return config


def write_base(folder):
    config = get_config()
    config.total_steps = 0
    training = Training.of(config)
    text = make_text_encoder(config.text)
    _write(folder, training, {"text": text.digest} if text.digest else {}, 0)
    return folder


def write_adapted(folder, base, **fields):
    """Writes a run of adapters; returns it and its training."""
    training = Training.of(get_config(base, **fields))
    _write(folder, training, {**Run.open(base).inputs, **check_start(training)}, 1)
    return Run.open(folder), training


def _write(folder, training, inputs, seed):
    rng = np.random.default_rng(seed)
    noise = lambda leaf: np.float32(0.3 * rng.normal(size=leaf.shape))  # noqa: E731
    variables = jax.tree.map(noise, training.abstract.variables)
    folder.mkdir()
    name = write_record(folder, plain(training.config), inputs)
    save_inference(folder, name, variables, step=training.config.total_steps)
