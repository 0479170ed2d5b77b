"""ResNet-RS against torch.nn, and its published sizes."""

import functools

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from classifiers.models import resnet_rs
from classifiers.models.resnet import ResNet, ResNetBlock, SqueezeExcite
from classifiers.models.resnet_rs import ResNetRS
from launch.errors import InputError
from tests.classifiers.models import torch_resnet_rs as theirs
from tests.support.slow import first_fast

# Millions of parameters by depth: Azizi et al. 2023, table 3; the last Bello et al. 2021.
PUBLISHED = {50: 36, 101: 64, 152: 87, 350: 164}
MOMENTUM = 0.8
TINY = dict(stage_sizes=(2, 1, 1), width=4)


def count_by_hand(depth):
    """Kernels, two a channel of each norm, and the biases of what has any."""
    total = 27 * 32 + 9 * 32 * 32 + 9 * 32 * 64 + 9 * 64 * 64 + 2 * (32 + 32 + 64 + 64)
    channels = 64
    for stage, size in enumerate(
        {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}.get(depth, (4, 36, 72, 4))
    ):
        width = 64 * 2**stage
        out = 4 * width
        # Squeeze-and-excitation goes from 4 widths to one and back.
        rest = 9 * width**2 + width * out + 2 * (2 * width + out) + 2 * out * width + width + out
        total += channels * width + rest + channels * out + 2 * out
        total += (size - 1) * (out * width + rest)
        channels = out
    return total + 2048 * 1000 + 1000


@pytest.mark.parametrize(("depth", "millions"), first_fast(PUBLISHED.items()))
def test_number_of_parameters(depth, millions):
    model = ResNetRS(num_classes=1000, stage_sizes=resnet_rs.SIZES[depth])
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert count == count_by_hand(depth)
    assert round(count / 1e6) == millions


def randomized(shapes, seed=0):
    """Variables of which no scale is zero."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        kind = path[-1].key
        if kind.endswith(("scale", "var")):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        spread = np.prod(leaf.shape[:-1]) ** -0.5 if kind == "kernel" else 0.3
        return rng.normal(0, spread, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def shapes_of(block, x):
    return jax.eval_shape(lambda: block.init(jax.random.key(0), x, False))


def normal(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def flat(variables):
    return flax.traverse_util.flatten_dict(variables, sep=".")


def close(ours, expected):
    """To 1e-5 of the largest."""
    expected = np.asarray(expected)
    assert np.std(expected) > 0.01
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def nchw(x):
    return torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("ratio", [0.25, 0.01])
def test_squeeze_excite_against_torch(ratio):
    x, module = normal(3, 4, 5, 8), SqueezeExcite(ratio, jnp.float32)
    params = randomized(jax.eval_shape(module.init, jax.random.key(0), x))
    block = theirs.SqueezeExcite(8, ratio)
    for name in ("reduce", "expand"):
        layer = {f"params.{name}.{k}": v for k, v in params["params"][name].items()}
        assert len(theirs.load(getattr(block, name), name, layer)) == 2
    with torch.no_grad():
        expected = block(nchw(x)).permute(0, 2, 3, 1)
    close(jax.jit(module.apply)(params, x), expected)


@pytest.mark.parametrize("size", [(6, 4), (5, 7)])
@pytest.mark.parametrize("stride", [1, 2])
def test_resnet_d_shortcut_against_torch(size, stride):
    """A branch whose last norm has neither scale nor bias gives nothing to the sum."""
    x = normal(2, *size, 8)
    norm = functools.partial(nn.BatchNorm, use_running_average=True, epsilon=1e-5)
    block = ResNetBlock(4, stride, True, norm, jnp.float32, average_shortcut=True)
    variables = randomized(shapes_of(block, x))
    last = variables["params"]["norm_2"]
    last["scale"], variables["batch_stats"]["norm_2"]["mean"] = 0 * last["scale"], 0 * last["bias"]
    last["bias"] = 0 * last["bias"]
    shortcut = theirs.Shortcut(8, 16, stride, 0.9).eval()
    for name in ("conv", "norm"):
        assert theirs.load(getattr(shortcut, name), f"shortcut_{name}", flat(variables))
    with torch.no_grad():
        expected = torch.relu(shortcut(nchw(x))).permute(0, 2, 3, 1)
    ours = jax.jit(lambda v, x: block.apply(v, x, False))(variables, x)
    assert ours.shape == (2, -(-size[0] // stride), -(-size[1] // stride), 16)
    close(ours, expected)


@functools.cache
def network():
    """Ours and theirs with the same weights, and images of an odd size."""
    model = ResNetRS(num_classes=5, dropout=0.0, momentum=MOMENTUM, **TINY)
    images = normal(6, 37, 50, 3)
    variables = randomized(jax.eval_shape(model.init, jax.random.key(0), images))
    return model, variables, images


def reference(train):
    """Features, logits and what PyTorch's norms have noted."""
    _, variables, images = network()
    net = theirs.ResNetRS(5, **TINY, ratio=0.25, momentum=MOMENTUM).train(train)
    used = [
        key for path, layer in net.places() for key in theirs.load(layer, path, flat(variables))
    ]
    assert sorted(used) == sorted(flat(variables))
    sizes = {}
    for path, layer in net.places():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.register_forward_hook(
                lambda _, x, __, path=path: sizes.update({path: x[0].numel() // x[0].shape[1]})
            )
    with torch.no_grad():
        features, logits = net(nchw(images))
    return features, logits, {p: (layer, sizes[p]) for p, layer in net.places() if p in sizes}


def test_evaluation_against_torch():
    model, variables, images = network()
    features, logits, _ = reference(train=False)
    run = jax.jit(lambda v, x: (model.apply(v, x), model.apply(v, x, features=True)))
    ours, our_features = run(variables, images)
    assert our_features.shape == (6, 4 * 4 * 4)
    close(ours, logits)
    close(our_features, features)


def test_training_against_torch():
    model, variables, images = network()
    _, logits, norms = reference(train=True)
    run = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    ours, state = run(variables, images)
    close(ours, logits)
    moved, before = flat(state["batch_stats"]), flat(variables["batch_stats"])
    assert len(moved) == 2 * len(norms)
    for path, (layer, count) in norms.items():
        # PyTorch notes the unbiased variance, flax the one that it divides by.
        kept = MOMENTUM * before[f"{path}.var"]
        unbiased = layer.running_var.numpy() - kept
        assert np.abs(moved[f"{path}.mean"] - before[f"{path}.mean"]).max() > 1e-3
        close(moved[f"{path}.mean"], layer.running_mean)
        close(moved[f"{path}.var"], kept + unbiased * (count - 1) / count)


def small_block(drop_path):
    norm = functools.partial(nn.BatchNorm, use_running_average=True)
    block = ResNetBlock(2, 1, True, norm, jnp.float32, drop_path=drop_path)
    x = np.abs(normal(512, 2, 2, 8)) + 20  # so large that the sum is never cut at zero
    return block, randomized(shapes_of(block, x)), x


def test_stochastic_depth_leaves_out_whole_branches_and_keeps_the_mean():
    rate = 0.4
    block, variables, x = small_block(rate)

    @functools.partial(jax.jit, static_argnums=0)
    def run(train, key):
        return block.apply(variables, x, train, rngs={"dropout": key})

    whole = np.asarray(run(False, jax.random.key(0))) - x
    part = np.asarray(run(True, jax.random.key(0))) - x
    gone = (part == 0).all((1, 2, 3))
    # Example by example: all of it or nothing.
    np.testing.assert_allclose(part[~gone], whole[~gone] / (1 - rate), rtol=1e-3, atol=1e-4)
    assert abs(gone.mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / len(x))
    assert np.abs(whole[gone]).max() > 0.1
    np.testing.assert_array_equal(run(True, jax.random.key(0)) - x, part)
    assert ((run(True, jax.random.key(1)) - x == 0).all((1, 2, 3)) != gone).any()


def rates(model):
    """The rate of every block, as the network calls them."""
    found = []

    def note(next_call, args, kwargs, context):
        if isinstance(context.module, ResNetBlock) and context.method_name == "__call__":
            found.append(context.module.drop_path)
        return next_call(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    return found


def test_later_stages_are_left_out_more_often():
    model = ResNetRS(num_classes=2, stage_sizes=(1, 2, 1, 1), width=4, drop_path=0.1)
    assert rates(model) == pytest.approx([0.04, 0.06, 0.06, 0.08, 0.1])


MODELS = {
    "resnet": ResNet(3, (1,), width=4, small_stem=True, dropout=0.5),
    "resnet_rs": ResNetRS(3, (1,), width=4, dropout=0.5),
    "drop_path": ResNetRS(3, (1,), width=4, dropout=0.0, drop_path=0.5),
}


@pytest.mark.parametrize("name", MODELS)
def test_training_takes_a_key(name):
    model, images = MODELS[name], normal(8, 8, 8, 3)
    variables = randomized(jax.eval_shape(model.init, jax.random.key(0), images))

    @jax.jit
    def train(key):
        rngs = {"dropout": key}
        return model.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)[0]

    first = train(jax.random.key(0))
    np.testing.assert_array_equal(first, train(jax.random.key(0)))
    assert (first != train(jax.random.key(1))).any()
    evaluated = jax.jit(model.apply)(variables, images)
    assert evaluated.shape == (8, 3) and np.isfinite(evaluated).all()


def test_dropout_keeps_the_mean_of_the_heads_input():
    """With a head that is a mean, logits are the mean of what is left of the features."""
    model = ResNet(1, (), width=512, small_stem=True, dropout=0.25)
    images = normal(64, 2, 2, 1)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    head = {"kernel": jnp.full((512, 1), 1 / 512), "bias": jnp.zeros(1)}
    variables = {**variables, "params": {**variables["params"], "head": head}}
    run = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    features = run(variables, images, features=True)[0]
    logits = run(variables, images, rngs={"dropout": jax.random.key(0)})[0][:, 0]
    exact = features.mean(1)
    # The variance of one value that is kept with 3/4 and then divided by that is a third.
    spread = np.sqrt((features**2 / 3).sum(1)) / 512
    assert np.abs((logits - exact) / spread).max() < 5
    assert np.abs((logits - exact) / spread).mean() > 0.5
    assert abs(float(((logits - exact) / spread).mean())) < 5 / 8


def test_half_precision_keeps_parameters_and_logits_in_float32():
    model = ResNetRS(num_classes=3, dtype=jnp.bfloat16, auxiliary_batch_norm=True, **TINY)
    image = jnp.zeros((1, 24, 24, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    dtypes = set()

    def note(next_call, args, kwargs, context):
        found = next_call(*args, **kwargs)
        if context.module.name != "head" and context.method_name == "__call__":
            dtypes.add((type(context.module).__name__, str(found.dtype)))
        return found

    for features in (False, True):
        run = functools.partial(model.apply, features=features)
        with nn.intercept_methods(note):
            assert jax.eval_shape(run, variables, image).dtype == jnp.float32
    half = {"AuxiliaryBatchNorm", "Conv", "Dense", "ResNetBlock", "SqueezeExcite"}
    assert {(name, "bfloat16") for name in half} <= dtypes
    assert {name for name, dtype in dtypes if dtype == "float32"} == {"ResNetRS", "Dropout"}


@pytest.mark.parametrize("size", [1, 31, 33])
def test_any_size(size):
    model = ResNetRS(num_classes=3, stage_sizes=(1, 1, 1, 1), width=2)
    shape = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, size, size, 3)))
    assert shape[0].shape == (2, 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(dropout=25.0), r"model\.dropout must be in \[0, 1\), got 25\.0"),
        (dict(drop_path=-0.1), r"model\.drop_path must be in \[0, 1\), got -0\.1"),
    ],
)
def test_rates_that_are_none(fields, message):
    with pytest.raises(InputError, match=message):
        ResNetRS(num_classes=3, stage_sizes=(1,), **fields)
