import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from imagen_ft import text
from imagen_ft.assembly import make_denoiser, make_stage
from imagen_ft.cascade import Cascade
from input_pipeline.files import InputError

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
# The base stage is guided, the super-resolution stage noises what it starts from.
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


def encoder():
    model = dict(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    return text.make_text_encoder(ConfigDict(dict(max_length=3, seed=0, model=model)))


def stages():
    return tuple(
        make_stage(
            ConfigDict(dict(sampling, sampler=SAMPLER, threshold_percentile=100.0)),
            make_denoiser(ConfigDict(network)),
        )
        for network, sampling in STAGES
    )


def random_variables(stage, seed):
    """Values by NumPy: compiling flax's own takes ten times as long as these tests."""
    shapes = jax.eval_shape(stage.denoiser.init, jax.random.key(0), jnp.zeros(encoder().shape))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        around = 1.0 if path[-1].key == "scale" else 0.0
        spread = max(math.prod(leaf.shape[:-1]), 25) ** -0.5
        return np.asarray(rng.normal(around, spread, leaf.shape), np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def cascade():
    variables = tuple(random_variables(stage, seed) for seed, stage in enumerate(stages()))
    return Cascade(stages(), variables, encoder(), NAMES, ("", ""))


def bilinear(image, size):
    """Half-pixel centres, edges repeated, without a library."""
    position = np.clip((np.arange(size) + 0.5) * len(image) / size - 0.5, 0, len(image) - 1)
    first = np.floor(position).astype(int)
    weight = (position - first)[:, None]
    rows = lambda a: (1 - weight) * a[first] + weight * a[np.minimum(first + 1, len(a) - 1)]  # noqa: E731
    return rows(rows(image).T).T


def low_images(count):
    return np.random.default_rng(0).uniform(-1, 1, (count, 4, 4, 1)).astype(np.float32)


def test_condition_without_noise_is_bilinear():
    denoiser, low = stages()[1].denoiser, low_images(3)
    noise = np.full((3, 8, 8, 1), np.nan, np.float32)
    found = denoiser.condition(low, noise, np.zeros(3, np.float32))
    expected = np.stack([bilinear(image[..., 0], 8) for image in low])[..., None]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_condition_noised_to_a_level():
    denoiser, low = stages()[1].denoiser, np.tile(low_images(1), (4000, 1, 1, 1))
    noise = np.asarray(jax.random.normal(jax.random.key(0), (4000, 8, 8, 1)))
    level = np.tile(np.float32([0.01, 0.2, 0.6, 1]), 1000)
    found = np.asarray(denoiser.condition(low, noise, level), np.float64).reshape(1000, 4, 8, 8)
    upsampled = bilinear(low[0, ..., 0], 8)
    # Variance-preserving: cos and sin of the level's angle.
    angle = np.pi / 2 * level[:4]
    np.testing.assert_allclose(found.var(axis=0).mean(axis=(1, 2)), np.sin(angle) ** 2, rtol=0.03)
    mean = np.cos(angle)[:, None, None] * upsampled
    assert np.abs(found.mean(axis=0) - mean).max() < 5 / np.sqrt(1000)


@pytest.mark.parametrize("number", [0, 1], ids=["base", "super-resolution"])
def test_an_image_is_the_same_in_any_batch(cascade, number):
    stage, variables = cascade.stages[number], cascade.variables[number]
    keys = jax.random.split(jax.random.key(3), 3)
    states, null = encoder().embed(NAMES), encoder().null()
    low = low_images(3) if number else None
    together = np.asarray(stage.sample(variables, keys, states, null, low))
    size = stage.denoiser.size
    assert together.shape == (3, size, size, 1)
    # The images are neither the same nor all clipped to black and white.
    assert np.std(together, axis=0).mean() > 0.1 and (np.abs(together) < 1).mean() > 0.3
    alone = stage.sample(variables, keys[1:2], states[1:2], null, low[1:2] if number else None)
    np.testing.assert_allclose(alone, together[1:2], atol=1e-5)


def test_text_and_low_resolution_images_matter(cascade):
    keys, states = jax.random.split(jax.random.key(3), 3), encoder().embed(NAMES)
    null, low = encoder().null(), low_images(3)

    def draw(number, states, null, low):
        variables = cascade.variables[number]
        return np.asarray(cascade.stages[number].sample(variables, keys, states, null, low))

    base, large = draw(0, states, null, None), draw(1, states, null, low)
    assert np.abs(base - draw(0, states[::-1], null, None)).max() > 1e-3
    assert np.abs(base - draw(0, states, 0 * null, None)).max() > 1e-3
    assert np.abs(large - draw(1, states, null, -low)).max() > 1e-3


def test_the_steps_do_not_read_what_projects_the_text(cascade):
    stage, variables = cascade.stages[0], cascade.variables[0]
    inputs = jax.random.split(jax.random.key(3), 3), encoder().embed(NAMES), encoder().null()
    sample = type(stage).sample.__wrapped__
    program = jax.make_jaxpr(lambda variables: sample(stage, variables, *inputs))(variables).jaxpr
    [loop] = [step for step in program.eqns if step.primitive.name == "scan"]
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(variables)]
    inside = {p for p, var in zip(paths, program.invars, strict=True) if var in set(loop.invars)}
    text = ("add_k_proj", "add_v_proj", "norm_cross", "encoder_hid_proj", "add_embedding")
    of_text = {path for path in paths if any(name in path for name in text)}
    assert of_text and inside == set(paths) - of_text


def test_cascade_draws_by_index(cascade):
    prompts, told = ["c", "ab", "de", "c"], []
    small, large = cascade.sample_stages(prompts, seed=5, batch_size=3, progress=told.append)
    assert small.shape == (4, 4, 4, 1) and large.shape == (4, 8, 8, 1)
    assert small.dtype == large.dtype == np.uint8
    assert told == [3, 1]
    # The same prompt, but another image.
    assert (large[0] != large[3]).any()
    again = cascade.sample(prompts[2:3], seed=5, indices=np.array([2]), batch_size=1)
    np.testing.assert_allclose(again.astype(int), large[2:3], atol=1)
    other = cascade.sample(prompts[2:3], seed=6, indices=np.array([2]), batch_size=1)
    assert (other != again).any()


def test_cascade_knows_its_classes_only(cascade):
    with pytest.raises(
        InputError,
        match=r"prompt 2: 'cd' is not a class of this model \(did you mean 'c'\?\); use one of ab",
    ):
        cascade.sample(["ab", "cd"])


def test_a_level_is_a_fraction():
    config = ConfigDict(
        dict(STAGES[1][1], sampler=SAMPLER, threshold_percentile=100.0, noise_augmentation=1.5)
    )
    with pytest.raises(InputError, match=r"noise_augmentation=1\.5"):
        make_stage(config, stages()[1].denoiser)


def test_stages_with_the_same_fields_are_one_to_jit():
    first, again = stages()[0], stages()[0]
    assert first == again and hash(first) == hash(again)
    assert dataclasses.replace(first, guidance_weight=2.0) != first
