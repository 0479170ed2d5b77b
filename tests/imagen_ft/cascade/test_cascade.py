import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.digits import sample
from imagen_ft.cascade import Request
from imagen_ft.diffusion import samplers
from imagen_ft.diffusion.from_config import make_denoiser, make_stage, make_stages
from imagen_ft.diffusion.stage import Stage
from imagen_ft.text import encoders
from launch.errors import Diverged, InputError
from launch.runtime.images import to_float, to_uint8
from tests.support.close import assert_same_up_to_rounding
from tests.support.small_cascade import (
    NAMES,
    SAMPLER,
    STAGES,
    encoder,
    low_images,
    make_cascade,
    random_variables,
    stages,
    with_batches,
)


@pytest.fixture(scope="module")
def cascade():
    return make_cascade()


def bilinear(image, size):
    """Half-pixel centres, edges repeated, without a library."""
    position = np.clip((np.arange(size) + 0.5) * len(image) / size - 0.5, 0, len(image) - 1)
    first = np.floor(position).astype(int)
    weight = (position - first)[:, None]
    rows = lambda a: (1 - weight) * a[first] + weight * a[np.minimum(first + 1, len(a) - 1)]  # noqa: E731
    return rows(rows(image).T).T


def test_condition_without_noise_is_bilinear():
    denoiser, low = stages()[1].denoiser, low_images(3)
    noise = np.full((3, 8, 8, 1), np.nan, np.float32)
    found = denoiser.condition(low, noise, np.zeros(3, np.float32))
    expected = np.stack([bilinear(image[..., 0], 8) for image in low])[..., None]
    assert_same_up_to_rounding(found, expected)


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
    assert_same_up_to_rounding(alone, together[1:2])


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
    encoders = ("add_k_proj", "add_v_proj", "norm_cross", "encoder_hid_proj", "add_embedding")
    of_text = {path for path in paths if any(name in path for name in encoders)}
    assert of_text and inside == set(paths) - of_text


def test_cascade_draws_by_index(cascade):
    prompts, counts = ["c", "ab", "de", "c"], []
    options = dict(seed=5, batch_size=3)
    small, large = cascade.sample(prompts, every_stage=True, progress=counts.append, **options)
    assert small.shape == (4, 4, 4, 1) and large.shape == (4, 8, 8, 1)
    assert small.dtype == large.dtype == np.uint8
    assert counts == [3, 1]
    np.testing.assert_array_equal(cascade.sample(prompts, **options), large)
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


SAMPLING = dict(STAGES[1][1], sampler=SAMPLER, threshold_percentile=100.0)


def test_stages_without_a_base_are_refused():
    config = sample.get_config()
    del config.stages.base4
    with pytest.raises(InputError, match="sr8 starts from 4 px, which no stage makes; "):
        make_stages(config)


def test_a_stage_is_what_its_config_says():
    fields = dict(
        guidance_weight=2.0,
        guidance_interval=(0.2, 0.7),
        threshold_percentile=95.0,
        threshold_maximum=1.5,
        noise_augmentation=0.4,
        batch_size=3,
    )
    stage = make_stage(ConfigDict(SAMPLING | fields), stages()[1].denoiser)
    assert {name: getattr(stage, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("noise_augmentation", 1.5),
        ("noise_augmentation", -0.1),
        ("guidance_weight", -0.5),
        ("guidance_weight", math.nan),
        ("guidance_interval", (0.7, 0.2)),
        ("guidance_interval", (0.2, 1.1)),
        ("guidance_interval", (0.2,)),
        ("threshold_percentile", 0.0),
        ("threshold_percentile", 101.0),
        ("threshold_maximum", 0.5),
        ("batch_size", -1),
    ],
)
def test_sampling_that_is_not_possible(field, value):
    with pytest.raises(InputError, match=rf"^{field}.*{re.escape(str(value))}(?:[:;]|$)") as error:
        make_stage(ConfigDict(SAMPLING | {field: value}), stages()[1].denoiser)
    assert "\n" not in str(error.value)


def test_a_learned_variance_has_to_be_there():
    sampler = dict(SAMPLER, logvar_coeff="learned")
    with pytest.raises(InputError, match=r"set stage\.learned_variance"):
        make_stage(ConfigDict(SAMPLING | dict(sampler=sampler)), stages()[1].denoiser)


@pytest.mark.slow
def test_upsampling_begins_anywhere_in_a_cascade(cascade):
    """Three stages; the third one alone has other keys than as the second one."""
    network = dict(STAGES[1][0], size=16, low_size=8)
    third = make_stage(ConfigDict(SAMPLING), make_denoiser(ConfigDict(network)))
    three = dataclasses.replace(
        cascade,
        stages=(*cascade.stages, third),
        variables=(*cascade.variables, random_variables(third, 2)),
    )
    prompts = ["c", "ab"]
    small, middle, large = three.sample(prompts, seed=5, every_stage=True)
    assert [images.shape[1] for images in (small, middle, large)] == [4, 8, 16]
    for images in (small, middle):
        again = three.sample(prompts, seed=5, low=images)
        assert np.abs(again.astype(int) - large).max() <= 8
    other = three.sample(prompts, seed=6, low=middle)
    assert np.abs(other.astype(int) - large).max() > 50
    run = three.sample(prompts, seed=5, low=small, every_stage=True)
    assert [images.shape[1] for images in run] == [8, 16]


def test_stages_with_the_same_fields_are_one_to_jit():
    first, again = stages()[0], stages()[0]
    assert first == again and hash(first) == hash(again)
    assert dataclasses.replace(first, guidance_weight=2.0) != first


@pytest.fixture
def traced_anew():
    """Programs that other tests have traced know nothing of what a test puts in their functions."""
    Stage.sample.clear_cache()
    yield
    Stage.sample.clear_cache()


@pytest.mark.slow
@pytest.mark.usefixtures("traced_anew")
def test_batches_of_a_stage_change_nothing(cascade, monkeypatch):
    prompts, original, drawn = ["c", "ab", "de", "c", "ab"], samplers.noise_of_keys, []

    def recording(keys, shape):
        def noise(step):
            value = original(keys, shape)(step)
            jax.debug.callback(lambda *both: drawn.append(both), jnp.int32(step), value)
            return value

        return noise

    def draw(batch_size, *sizes):
        drawn.clear()
        own = with_batches(cascade, *sizes)
        images = own.sample(prompts, seed=7, batch_size=batch_size, every_stage=True)
        jax.effects_barrier()
        rows = {(int(step), row.tobytes()) for step, rows in drawn for row in np.asarray(rows)}
        return (
            images,
            rows,
            [{len(rows) for _, rows in drawn if rows.shape[1] == s} for s in (4, 8)],
        )

    monkeypatch.setattr(samplers, "noise_of_keys", recording)
    monkeypatch.setattr("imagen_ft.cascade.drawing.to_uint8", lambda images: images)
    together, noise, sizes = draw(5, 5, 5)
    assert sizes == [{5}, {5}] and len(noise) == 5 * (3 + 4)
    in_parts, noise_of_parts, sizes = draw(4, 2, 3)
    assert sizes == [{2}, {3}]
    assert noise <= noise_of_parts
    for found, expected in zip(in_parts, together, strict=True):
        assert_same_up_to_rounding(found, expected)
        assert np.std(expected, axis=0).mean() > 0.1


def test_enlarging_is_the_second_half_of_sampling(cascade):
    prompts, indices = ["c", "ab", "de"], np.array([4, 0, 9])
    options = dict(seed=5, indices=indices)
    small, large = cascade.sample(prompts, every_stage=True, **options)
    enlarged = cascade.sample(prompts, low=small, batch_size=2, **options)
    # The base's images are rounded to whole numbers between the two.
    assert np.abs(enlarged.astype(int) - large).max() <= 3
    keys = jax.vmap(lambda n: jax.random.fold_in(jax.random.fold_in(jax.random.key(5), 1), n))
    inputs = keys(jnp.asarray(indices)), encoder().embed(prompts), encoder().null()
    images = cascade.stages[1].sample(cascade.variables[1], *inputs, to_float(small))
    assert np.abs(enlarged - (np.asarray(images) + 1) * 127.5).max() <= 0.51
    for changed in (dict(low=small, seed=6), dict(low=255 - small)):
        other = cascade.sample(prompts, **(options | changed))
        assert np.abs(other.astype(int) - large).max() > 50


def test_start_of_a_cascade(cascade):
    prompts = ["c", "ab", "de"]
    start = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 1), np.uint8)
    options = dict(seed=5, batch_size=2, start=start, skip_steps=1)
    small, large = cascade.sample(prompts, every_stage=True, **options)
    assert small.shape == (3, 4, 4, 1) and large.shape == (3, 8, 8, 1)
    keys = jax.vmap(lambda n: jax.random.fold_in(jax.random.fold_in(jax.random.key(5), 0), n))
    inputs = keys(jnp.arange(3)), encoder().embed(prompts), encoder().null(), None
    images = cascade.stages[0].sample(cascade.variables[0], *inputs, to_float(start), skip_steps=1)
    assert np.abs(small - (np.asarray(images) + 1) * 127.5).max() <= 0.51
    np.testing.assert_array_equal(cascade.sample(prompts, **options), large)
    assert (cascade.sample(prompts, seed=5, batch_size=2, skip_steps=1) != large).any()
    # The second stage takes all of its steps.
    enlarged = cascade.sample(prompts, seed=5, batch_size=2, low=small)
    assert np.abs(enlarged.astype(int) - large).max() <= 3


IMAGES = np.zeros((2, 4, 4, 1), np.uint8)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            np.zeros((2, 5, 5, 1), np.uint8),
            r"low must be images of .*4 px, got the shape \[2, 5, 5, 1\]",
        ),
        (
            np.zeros((2, 0, 0, 1), np.uint8),
            r"low must be images of .*4 px, got the shape \[2, 0, 0, 1\]",
        ),
        (np.zeros(4, np.uint8), r"low must be images of .*4 px, got the shape \[4\]"),
        (IMAGES[:1], r"low must be uint8 \[2, 4, 4, 1\], one per image, got uint8 \[1, 4, 4, 1\]"),
        (
            IMAGES[..., [0, 0, 0]],
            r"low must be uint8 \[2, 4, 4, 1\], one per image, got uint8 \[2, 4, 4, 3\]",
        ),
        (
            IMAGES / np.float32(255),
            r"low must be uint8 \[2, 4, 4, 1\], one per image, got float32 \[2, 4, 4, 1\]",
        ),
    ],
)
def test_images_that_cannot_be_enlarged(cascade, images, message):
    with pytest.raises(InputError, match=message) as error:
        cascade.sample(["c", "ab"], low=images)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(skip_steps=2), "skip_steps must be below the base's 2 steps, got 2"),
        (dict(skip_steps=-1), "skip_steps must be below the base's 2 steps, got -1"),
        (dict(start=IMAGES), "skip_steps must be at least 1 with a start, got 0"),
        (dict(indices=np.array([1, -1])), "indices must be from 0 to 4294967295, got -1"),
        (dict(indices=np.array([1, 2**32])), "indices must be from 0 to .*, got 4294967296"),
        (
            dict(start=IMAGES[:1]),
            r"start must be uint8 \[2, 4, 4, 1\], one per image, got uint8 \[1, 4, 4, 1\]",
        ),
        (
            dict(start=np.zeros((2, 8, 8, 1), np.uint8)),
            r"start must be uint8 \[2, 4, 4, 1\], one per image, got uint8 \[2, 8, 8, 1\]",
        ),
        (
            dict(start=to_float(IMAGES)),
            r"start must be uint8 \[2, 4, 4, 1\], one per image, got float32 \[2, 4, 4, 1\]",
        ),
        (dict(start=IMAGES, low=IMAGES), "start and skip_steps are for the base, which low"),
        (dict(skip_steps=1, low=IMAGES), "start and skip_steps are for the base, which low"),
    ],
)
def test_fields_that_do_not_fit(cascade, options, message):
    with pytest.raises(InputError, match=message) as error:
        cascade.sample(["c", "ab"], **options)
    assert "\n" not in str(error.value)


def test_cascades_without_a_half(cascade):
    def only(number):
        fields = dict(stages=cascade.stages[number:][:1], variables=cascade.variables[number:][:1])
        return dataclasses.replace(cascade, **fields)

    with pytest.raises(InputError, match="this cascade has no base; give images to enlarge as low"):
        only(1).sample(["c", "ab"])
    with pytest.raises(InputError, match="this cascade has no base"):
        only(1).path(["c", "ab"])
    with pytest.raises(
        InputError, match=r"low must be left out, .*, got the shape \[2, 4, 4, 1\]$"
    ):
        only(0).sample(["c", "ab"], low=IMAGES)
    assert only(1).sample(["c", "ab"], low=IMAGES).shape == (2, 8, 8, 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(), "give either prompts or labels"),
        (dict(prompts=["ab"], labels=np.zeros(1, int)), "give either prompts or labels"),
        (dict(prompts=[]), "prompts must have at least one entry, got none"),
        (dict(labels=np.zeros(0, int)), "labels must have at least one entry, got none"),
        (dict(prompts=["ab"], batch_size=0), "batch_size must be at least 1, got 0"),
        (
            dict(prompts=["ab"], indices=np.arange(2)),
            "indices must have one entry for each of 1 prompts, got 2",
        ),
        (
            dict(prompts=["ab"], positions=np.arange(2)),
            "positions must have one entry for each of 1 prompts, got 2",
        ),
        (dict(labels=np.array([0, 3])), "labels must be below the cascade's 3 classes, got 3"),
        (dict(labels=np.array([0, -1])), "labels must be below the cascade's 3 classes, got -1"),
        (
            dict(labels=np.array([0.0, 1.0])),
            "labels must be integers, the numbers of classes, got float64",
        ),
        (
            dict(labels=np.array([True])),
            "labels must be integers, the numbers of classes, got bool",
        ),
        (
            dict(labels=np.zeros((2, 1), int)),
            "labels must be a flat list, one label per image, got the shape .2, 1",
        ),
    ],
)
def test_requests_that_are_refused(cascade, fields, message):
    # Before a batch is asked for.
    with pytest.raises(InputError, match=message):
        cascade.stream(Request(**fields))
    with pytest.raises(InputError, match=message):
        cascade.sample(**fields)


def test_a_path_needs_prompts(cascade):
    with pytest.raises(InputError, match="prompts must have at least one entry, got none"):
        cascade.path([])


def test_classes_are_drawn_as_their_prompts(cascade):
    labels, indices = np.array([2, 0, 1, 1, 2]), np.array([7, 3, 0, 9, 4])
    prompts = [NAMES[label] for label in labels]
    options = dict(seed=1, indices=indices, batch_size=2)
    expected = cascade.sample(prompts, every_stage=True, **options)
    batches = list(cascade.stream(Request(labels=labels, **options)))
    assert [[len(images) for images in batch] for batch in batches] == [[2], [2], [1]]
    np.testing.assert_array_equal(np.concatenate([images for [images] in batches]), expected[1])
    batches = list(cascade.stream(Request(labels=labels, **options), every_stage=True))
    for images, whole in zip(zip(*batches, strict=True), expected, strict=True):
        np.testing.assert_array_equal(np.concatenate(images), whole)


def test_the_row_of_an_image_follows_from_its_position(cascade, monkeypatch):
    """XLA on a CPU rounds some rows of a batch in another way than others."""

    def rows(stage, variables, keys, **inputs):
        shape = len(keys), stage.denoiser.size, stage.denoiser.size, 1
        return jnp.broadcast_to(
            jnp.arange(len(keys), dtype=jnp.float32)[:, None, None, None], shape
        )

    monkeypatch.setattr(Stage, "sample", rows)
    monkeypatch.setattr("imagen_ft.cascade.drawing.to_uint8", lambda images: images)
    positions = np.array([3, 4, 5, 6, 7, 8, 9, 20, 21, 22, 23, 24, 25, 26, 31, 40])
    request = Request(labels=positions % 3, positions=positions, batch_size=8)
    batches = list(with_batches(cascade, 5, 0).stream(request, every_stage=True))
    assert [len(images) for images, _ in batches] == [5, 2, 4, 3, 1, 1]
    for images, size in zip(zip(*batches, strict=True), (5, 8), strict=True):
        np.testing.assert_array_equal(np.concatenate(images)[:, 0, 0, 0], positions % size)


def test_a_stream_is_one_batch_ahead_and_no_more(cascade, monkeypatch):
    """Each batch is fetched when the next one is on its way, and only what is asked for."""
    cascades, meshes = "imagen_ft.cascade.drawing", "launch.runtime.devices.mesh"
    steps = []
    monkeypatch.setattr(f"{cascades}.to_uint8", lambda images: steps.append("run") or images)
    flags = jnp.ones(2, bool)

    def fetch(array):
        if array.ndim > 1:
            steps.append(array.shape)
        return flags

    monkeypatch.setattr(f"{meshes}.fetch", fetch)
    for _ in dataclasses.replace(cascade, batch_size=2).stream(Request(["ab"] * 5)):
        steps.append("use")
    run = ["run", "run"]  # both stages
    fetched = [*run, *run, (2, 8, 8, 1), "use", *run, (2, 8, 8, 1), "use", (1, 8, 8, 1), "use"]
    assert steps == fetched


@dataclasses.dataclass(frozen=True)
class BadStates(encoders.FixedTextEncoder):
    """States of which one prompt's are no numbers."""

    def embed(self, prompts, nulls=()):
        states = super().embed(prompts, nulls)
        states[[text == "de" for text in (*prompts, *nulls)]] = np.nan
        return states


def test_an_image_that_is_not_finite_is_named(cascade):
    """It is the network's output: an infinity would be clipped, and NaN be cast to 0."""
    text = encoder()
    bad = dataclasses.replace(
        cascade, encoder=BadStates(text.model, text.max_length, text.seed), batch_size=2
    )
    words = r"stage base4 produced NaN or infinity for image 43 of the prompt 'de': .* in float32"
    options = dict(indices=np.array([40, 41, 42, 43, 44]), batch_size=2)
    with pytest.raises(Diverged, match=words):
        bad.sample(["ab", "c", "c", "de", "de"], **options)
    batches = bad.stream(Request(labels=np.array([0, 0, 1, 2, 0, 0]), batch_size=2))
    next(batches)
    with pytest.raises(Diverged, match="image 3 of the class 'de'"):
        next(batches)
    with pytest.raises(Diverged, match="stage base4 produced NaN or infinity for image 1 of"):
        bad.path(["ab", "de"])


@pytest.mark.parametrize("number", [0, 1])
def test_the_stage_that_is_not_finite_is_named(cascade, number):
    """Of all images; and of a network that says infinity."""

    def spoil(path, leaf):
        last = [key.key for key in path[-2:]] == ["conv_out", "bias"]
        return leaf + np.inf if last else leaf

    variables = list(cascade.variables)
    variables[number] = jax.tree_util.tree_map_with_path(spoil, variables[number])
    spoilt = dataclasses.replace(cascade, variables=tuple(variables))
    words = (
        f"stage {('base4', 'sr8')[number]} produced .* image 0 of the prompt 'ab' and 1 more of its"
    )
    with pytest.raises(Diverged, match=words):
        spoilt.sample(["ab", "c"])


def test_negative_prompts(cascade):
    """Any text may stand for no text where there is guidance: of all images, or of each."""
    base = dataclasses.replace(
        cascade, stages=cascade.stages[:1], variables=cascade.variables[:1], batch_size=3
    )
    prompts, negatives = ["c", "ab", "de"], ["zz", "", "c"]
    key = jax.random.fold_in(jax.random.key(0), 0)
    keys = jax.vmap(lambda n: jax.random.fold_in(key, n))(jnp.arange(3))

    def expected(nulls):
        states = encoder().embed(prompts, nulls)
        images = base.stages[0].sample(base.variables[0], keys, states[:3], states[3:])
        return np.asarray(to_uint8(images)).astype(int)

    assert_close = functools.partial(np.testing.assert_allclose, atol=1)
    assert_close(base.sample(prompts, negative_prompt="zz").astype(int), expected(["zz"]))
    assert_close(base.sample(prompts, negative_prompt=negatives).astype(int), expected(negatives))
    assert_close(base.sample(prompts).astype(int), expected([""]))
    assert np.abs(expected(["zz"]) - expected([""])).max() > 3
    # A config may say it for all.
    config = ConfigDict(dict(cascade.config, negative_prompt="zz"))
    own = dataclasses.replace(base, config=config)
    assert_close(own.sample(prompts).astype(int), expected(["zz"]))
    assert_close(own.sample(prompts, negative_prompt="").astype(int), expected([""]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(negative_prompt=["zz"]), "one for each of 2 images, got 1"),
        (dict(negative_prompt=[]), "one for each of 2 images, got 0"),
        (
            dict(negative_prompt="\udcff"),
            r"negative_prompt must be a string .*UTF-8 can encode, got '.udcff'",
        ),
        (
            dict(negative_prompt="longer"),
            "'longer' must have at most text.max_length=3 tokens, got 7",
        ),
        (
            dict(negative_prompt="zz", low=np.zeros((2, 4, 4, 1), np.uint8)),
            "negative_prompt='zz' changes nothing: guidance_weight is 1 .off. in every stage",
        ),
    ],
)
def test_negative_prompts_that_are_refused(cascade, fields, message):
    with pytest.raises(InputError, match=message):
        cascade.sample(["c", "ab"], **fields)
