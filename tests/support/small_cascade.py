"""A cascade of two tiny stages with seeded weights."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from imagen_ft.cascade import Cascade
from imagen_ft.diffusion.from_config import make_stages
from imagen_ft.text import encoders

NAMES = ("ab", "c", "de")
UNET = dict(
    block_out_channels=(8,),
    layers_per_block=1,
    attention=(False,),
    cross_attention_dim=8,
    attention_head_dim=4,
    num_groups=4,
    cross_num_groups=4,
    pooling_heads=2,
)


SAMPLER = dict(name="ddpm", num_steps=2, logvar_coeff=0.1)
# The base stage is guided; the super-resolution stage adds noise to its low-resolution input.
STAGES = (
    (
        dict(size=4, low_size=0, channels=1, schedule="cosine", unet=UNET),
        dict(guidance_weight=1.5, noise_augmentation=0.0),
    ),
    (
        dict(size=8, low_size=4, channels=1, schedule="cosine", unet=UNET),
        dict(guidance_weight=1.0, noise_augmentation=0.3),
    ),
)


TEXT = dict(max_length=3, seed=0, model=dict(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))


def encoder():
    return encoders.make_text_encoder(ConfigDict(TEXT))


def config():
    names = ("base4", "sr8")
    options = dict(sampler=SAMPLER, threshold_percentile=100.0)
    entries = [dict(sampling, stage=network, **options) for network, sampling in STAGES]
    stages = dict(zip(names, entries, strict=True))
    return ConfigDict(dict(stages=stages, batch_size=100, class_names=NAMES, text=TEXT))


def stages():
    return tuple(make_stages(config()).values())


def random_variables(stage, seed):
    """Values from NumPy: compiling flax's own takes ten times as long as these tests."""
    shapes = jax.eval_shape(stage.denoiser.init, jax.random.key(0), jnp.zeros(encoder().shape))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        around = 1.0 if path[-1].key == "scale" else 0.0
        spread = max(math.prod(leaf.shape[:-1]), 25) ** -0.5
        return np.asarray(rng.normal(around, spread, leaf.shape), np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def make_cascade():
    variables = tuple(random_variables(stage, seed) for seed, stage in enumerate(stages()))
    return Cascade(stages(), variables, encoder(), NAMES, ("", ""), config())


def low_images(count):
    return np.random.default_rng(0).uniform(-1, 1, (count, 4, 4, 1)).astype(np.float32)


def with_batches(cascade, *sizes):
    """Gives each stage its own batch size; no other test has equal stages."""
    pairs = zip(cascade.stages, sizes, strict=True)
    own = tuple(dataclasses.replace(stage, batch_size=size) for stage, size in pairs)
    return dataclasses.replace(cascade, stages=own)
