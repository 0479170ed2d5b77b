"""A sweep whose right answer follows from a formula: two classes of normal pixels.

The network knows the noise exactly, but for classes whose means are half of what they should be:
so a guidance weight of 2 draws the right ones. How far few steps are off in their variance follows
from a recursion.
"""

import contextlib
import dataclasses
import functools
from typing import Any
from unittest import mock

import jax.numpy as jnp
import numpy as np

from classifiers.extractors.extractor import Extractor
from imagen_ft import generate, sample, sweep
from imagen_ft.cascade import Cascade
from imagen_ft.diffusion import from_config
from imagen_ft.diffusion.ddpm import DDPM
from imagen_ft.diffusion.from_config import make_stages
from imagen_ft.diffusion.schedule import Cosine, alpha_sigma
from imagen_ft.evaluation import sampled
from imagen_ft.metrics import reference
from imagen_ft.metrics.frechet import frechet_distance
from imagen_ft.metrics.statistics import Statistics
from tests.support.affine_samplers import predicted_moments

NAMES, MEAN, STD, PIXELS = ("minus", "plus"), 0.3, 0.2, 4
BASE = """
from ml_collections import ConfigDict

def get_config():
    network = dict(channels=1, schedule="cosine", unet=dict(dtype="float32"))
    sampler = dict(name="ddpm", num_steps=4, logvar_coeff=0.0, eta=0.0)
    sampling = dict(sampler=sampler, guidance_weight=1.0, threshold_percentile=100.0)
    config = ConfigDict()
    config.cascade = dict(
        name="normal", class_names={names!r}, seed=0, copies=1, counts="{folder}/counts.json",
        text=dict(
            max_length=1, seed=0, model=dict(d_model=2, d_kv=2, d_ff=2, num_layers=1, num_heads=1)
        ),
        batch_size=500, images_per_shard=0, images_per_prompt=2, show_stages=True,
        encoding=dict(size=0, format="png"),
        stages=dict(
            base2=dict(run="nowhere", stage=dict(size=2, low_size=0, **network), **sampling),
            sr4=dict(
                run="nowhere", stage=dict(size=4, low_size=2, **network), noise_augmentation=0.0,
                **sampling
            ),
        ),
    )
    config.stage, config.low, config.labels = "base2", dict(), "balanced"
    config.grid = dict(
        guidance_weight=(1.0, 2.0, 3.0), logvar_coeff=(0.0, 0.5, 1.0), num_steps=(4, 8)
    )
    config.num_images = 1000
    config.reference = dict(statistics="{folder}/real.npz", source=dict(), held_out=dict())
    config.extractor = dict(name="classifier", path="nowhere")
    config.batch_size, config.num_shown = 500, 6
    config.measures, config.allow_few_images = ("frechet",), True
    config.choose_by = "frechet"
    config.halving = dict(measure="frechet", factor=3, finalists=2)
    config.cas = dict()
    return config
"""


@dataclasses.dataclass(frozen=True)
class Network:
    """The noise of normal pixels whose means are those that the text says."""

    dtype: Any = jnp.float32

    def init(self, *args):
        return {"params": {}}

    def apply(self, variables, *inputs, method):
        if method == "context":
            return jnp.mean(inputs[0], axis=(1, 2))
        x, time, mean = inputs
        alpha, sigma = (
            part[:, None, None, None] for part in alpha_sigma(Cosine().logsnr(time / 1000))
        )
        # What stands behind the pixels is what they are made from.
        x = x[..., :1]
        return sigma * (x - alpha * mean[:, None, None, None]) / (alpha**2 * STD**2 + sigma**2)


class Encoder:
    """Half the mean of each class."""

    shape, digest = (1, 1), ""

    def embed(self, prompts, nulls=()):
        means = {"minus": -MEAN / 2, "plus": MEAN / 2}
        texts = [means[prompt] for prompt in prompts] + [0.0 for _ in nulls]
        return np.array(texts, np.float32)[:, None, None]

    def null(self):
        return np.zeros((1, 1, 1), np.float32)

    def parameters(self):
        return {}


LOADED = []


def load(config, *args, **options):
    """Counts how often it is called."""
    stages = tuple(make_stages(config, base=False).values())
    LOADED.append([entry.get("ema", "main") for entry in config.stages.values()])
    digests = tuple("0" * 64 for _ in stages)
    return Cascade(
        stages, tuple({"params": {}} for _ in stages), Encoder(), NAMES, digests, config,
        config.batch_size,
    )  # fmt: skip


def pixels(variables, images):
    return {"features": jnp.reshape(images.astype(jnp.float32) / 127.5 - 1, (len(images), -1))}


@contextlib.contextmanager
def stand_ins():
    extractor = Extractor("pixels", "none", "0" * 64, pixels, {})
    with contextlib.ExitStack() as stack:
        patch = lambda *args: stack.enter_context(mock.patch.object(*args))  # noqa: E731
        patch(from_config, "_make_network", lambda config, out_channels: Network())
        patch(sweep, "open_extractor", lambda spec: extractor)
        for module in (sampled, generate, sample):
            patch(module, "load_cascade", load)
        yield


def statistics(mean, variance):
    """Of images of both classes."""
    covariance = variance * np.eye(PIXELS) + mean**2 * np.ones((PIXELS, PIXELS))
    return Statistics(np.zeros(PIXELS), covariance)


REAL = statistics(MEAN, STD**2)


@functools.cache
def distance(guidance_weight, logvar_coeff, num_steps):
    """Of a point, by theory."""
    mean, variance = predicted_moments(
        DDPM(num_steps, logvar_coeff), guidance_weight * MEAN / 2, STD
    )
    return frechet_distance(statistics(mean, variance), REAL)


def write_config(folder, text=BASE):
    """What the config reads, and itself."""
    (folder / "counts.json").write_text('{"minus": 3, "plus": 5}')
    reference.write(folder / "real.npz", REAL)
    # Of four by four pixels anything will do.
    reference.write(folder / "larger.npz", Statistics(np.zeros(16), np.eye(16)))
    path = folder / "config.py"
    path.write_text(text.format(folder=folder, names=NAMES))
    return path
