"""The vision transformers' fields: what drops, what is fixed, what is refused; published sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from classifiers.models import presets
from classifiers.models.dropout import is_stochastic
from classifiers.models.vit import sincos_positions
from launch.errors import InputError
from tests.support.close import assert_same_up_to_rounding
from tests.support.slow import first_fast

FIELDS = dict(width=8, depth=3, num_heads=2, patch_size=4)
# As torchvision, timm 1.0.31 and (vit_s16: timm's without class token and with fixed positions)
# the papers count them, with 1,000 classes.
PUBLISHED = {
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "vit_s16": 21_974_632,
    "vit_b16": 86_567_656,
    "vit_l16": 304_326_632,
    "deit_s": 22_050_664,
    "deit_b": 86_567_656,
    "deit_b_384": 86_859_496,
    "deit_l": 304_374_760,
}


@pytest.mark.parametrize("name", first_fast(PUBLISHED, 2))
def test_number_of_parameters(name):
    size = presets.PRESETS[name].size or 224
    shapes = presets.variable_shapes(presets.make(name, 1000), (size, size, 3))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == PUBLISHED[name]


def make(images, **fields):
    """A model and random variables for images of that shape, with a head that is not zero."""
    model = presets.make("vit", 3, **FIELDS | fields)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros(images))
    head = variables["params"]["head"]
    head["kernel"] = jax.random.normal(jax.random.key(1), head["kernel"].shape)
    return model, variables


def pictures(*shape):
    return jax.random.uniform(jax.random.key(2), shape, minval=-1, maxval=1)


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["sincos", "learned", "learned_patches"])
def test_positions_are_seen(positions):
    """Patches in another order are another image; with none added they would be the same."""
    model, variables = make((1, 8, 8, 3), positions=positions, pool="mean")
    image = pictures(1, 8, 8, 3)
    turned = jnp.roll(image, 4, axis=2)
    run = jax.jit(model.apply)
    assert np.abs(run(variables, image) - run(variables, turned)).max() > 1e-3


def test_fixed_positions():
    found = sincos_positions(2, 3, 8)
    assert found.shape == (1, 6, 8) and found.dtype == np.float32
    # Patch (1, 2): sines and cosines of x = 2 and of y = 1, at frequencies 1 and 1 / 10,000.
    expected = [wave(at * f) for at in (2, 1) for wave in (np.sin, np.cos) for f in (1, 1e-4)]
    np.testing.assert_allclose(found[0, 5], expected, rtol=1e-6)
    model, variables = make((1, 8, 12, 3), positions="sincos", pool="mean")
    assert "positions" not in variables["params"] and "class_token" not in variables["params"]
    # Without learned positions the same variables take images of any size.
    assert jax.eval_shape(model.apply, variables, pictures(2, 16, 4, 3)).shape == (2, 3)


@pytest.mark.slow
def test_features_are_what_the_head_sees():
    model, variables = make((1, 8, 8, 3))
    images = pictures(2, 8, 8, 3)
    features = model.apply(variables, images, features=True)
    head = variables["params"]["head"]
    assert features.shape == (2, 8)
    expected = features @ head["kernel"] + head["bias"][None]
    np.testing.assert_allclose(model.apply(variables, images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("field", ["dropout", "drop_path"])
def test_only_training_drops(field):
    model, variables = make((1, 8, 8, 3), **{field: 0.5})
    still, _ = make((1, 8, 8, 3))
    assert is_stochastic(model) and not is_stochastic(still)
    images = pictures(16, 8, 8, 3)

    @jax.jit
    def train(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply(variables, images, train=True, rngs=rngs)

    evaluated = model.apply(variables, images)
    np.testing.assert_array_equal(evaluated, still.apply(variables, images))
    np.testing.assert_array_equal(train(0), train(0))
    assert np.abs(train(0) - train(1)).max() > 1e-3
    assert np.abs(train(0) - evaluated).max() > 1e-3


def test_paths_are_dropped_whole_and_more_often_deeper():
    """A block that is skipped twice gives back its input; the first one never is."""
    model, variables = make((1, 8, 8, 3), drop_path=0.6)
    images = pictures(400, 8, 8, 3)

    @functools.partial(jax.jit, static_argnums=0)
    def blocks(train):
        _, state = model.apply(
            variables,
            images,
            train=train,
            capture_intermediates=lambda module, _: (module.name or "").startswith("block_"),
            rngs={"dropout": jax.random.key(0)},
        )
        found = state["intermediates"]
        return [found[f"block_{index}"]["__call__"][0] for index in range(3)]

    first, second, third = blocks(True)
    assert_same_up_to_rounding(first, blocks(False)[0])
    # Rates 0.3 and 0.6 a branch; both are skipped with 0.09 and 0.36, a standard error of 0.02.
    pairs = (first, second), (second, third)
    same = [(after == before).all((1, 2)).mean() for before, after in pairs]
    np.testing.assert_allclose(same, [0.09, 0.36], atol=0.08)


def test_dropped_paths_keep_the_mean():
    """What is kept is made larger, so that the expected branch is that of evaluation."""
    model, variables = make((1, 4, 4, 3), depth=2, drop_path=0.5)
    # Without its MLP's output the last block is linear in what is dropped.
    for part in ("kernel", "bias"):
        leaf = variables["params"]["block_1"]["mlp_2"]
        leaf[part] = jnp.zeros_like(leaf[part])
    images = jnp.repeat(pictures(1, 4, 4, 3), 2000, axis=0)

    @functools.partial(jax.jit, static_argnums=0)
    def last(train):
        _, state = model.apply(
            variables,
            images,
            train=train,
            capture_intermediates=lambda module, _: module.name == "block_1",
            rngs={"dropout": jax.random.key(0)},
        )
        return state["intermediates"]["block_1"]["__call__"][0]

    dropped, kept = last(True), last(False)
    spread = float(dropped.std(axis=0).max())
    assert spread > 0.1
    np.testing.assert_allclose(dropped.mean(0), kept[0], atol=5 * spread / 2000**0.5)


def test_layer_scale_starts_small():
    images = pictures(2, 8, 8, 3)
    model, variables = make((1, 8, 8, 3), layer_scale=1e-6)
    assert variables["params"]["block_0"]["scale_1"].tolist() == [np.float32(1e-6)] * 8
    short = model.clone(depth=0)
    np.testing.assert_allclose(
        model.apply(variables, images), short.apply(variables, images), atol=0.01
    )
    assert np.abs(model.apply(variables, images) - short.apply(variables, images)).max() > 0


@pytest.mark.slow
def test_remat_changes_no_gradient():
    model, variables = make((1, 8, 8, 3), drop_path=0.5, dropout=0.2)
    images = pictures(4, 8, 8, 3)

    def gradient(model):
        def loss(variables):
            rngs = {"dropout": jax.random.key(0)}
            return jnp.square(model.apply(variables, images, train=True, rngs=rngs)).sum()

        return jax.jit(jax.grad(loss))(variables)

    plain, again = gradient(model), gradient(model.clone(remat=True))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, again, plain)
    assert np.abs(plain["params"]["patch_embed"]["kernel"]).max() > 1e-3


def test_half_precision_keeps_parameters_and_results_in_float32():
    model = presets.make("vit", 3, **FIELDS, dtype=jnp.bfloat16, layer_scale=0.1)
    image = jnp.zeros((1, 8, 8, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    for features in (False, True):
        run = functools.partial(model.apply, features=features)
        assert jax.eval_shape(run, variables, image).dtype == jnp.float32


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(positions="rotary"), "model.positions must be one of 'learned'"),
        (dict(pool="max"), r"model\.pool must be .*got 'max'"),
        (dict(distillation="hard"), r"model\.distillation must be .*got 'hard'"),
        (dict(distillation="token", pool="mean"), "needs the class token"),
        (dict(drop_path=1.0), r"model\.drop_path must be .*got 1\.0"),
        (dict(dropout=-0.1), r"model\.dropout must be a finite number of at least 0, got -0\.1"),
        (dict(num_heads=3), "model.width must be a multiple of model.num_heads=3, got 8"),
        (dict(patch_size=3), "must be a multiple of model.patch_size=3 .*got 8x8"),
        (
            dict(width=6, positions="sincos"),
            "model.width must be a multiple of 4 for fixed positions, got 6",
        ),
        (dict(pixels="caffe"), "model.pixels must be one of plain, imagenet"),
        (
            dict(heads=3),
            "model 'vit' has no field 'heads'; use activation, depth, distillation, drop_path,",
        ),
    ],
)
def test_wrong_fields(fields, message):
    with pytest.raises(InputError, match=message):
        presets.variable_shapes(presets.make("vit", 3, **FIELDS | fields), (8, 8, 3))


def test_wrong_names():
    with pytest.raises(InputError, match=r"model\.name must be one of resnet, .*, vit_b16, "):
        presets.make("vit_h14", 3)
    with pytest.raises(InputError, match=r"model 'vit' needs model\.width"):
        presets.make("vit", 3, depth=2, num_heads=2)


def test_grey_images_have_no_colours_to_scale():
    model = presets.make("vit", 3, **FIELDS, pixels="imagenet")
    with pytest.raises(InputError, match="needs RGB images, got 1 channels"):
        presets.variable_shapes(model, (8, 8, 1))
