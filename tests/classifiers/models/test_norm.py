"""The second batch norm: each domain has what plain batch norm would give it alone."""

import dataclasses
import functools

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from classifiers.models.norm import AuxiliaryBatchNorm
from classifiers.models.resnet import ResNet
from classifiers.models.resnet_rs import ResNetRS
from classifiers.training.training import Training
from launch.errors import InputError
from launch.runtime.devices.mesh import make_mesh
from launch.runtime.state import create_state
from launch.runtime.training.optimizers import make_optimizer
from tests.support.devices import run_on

DOMAIN = np.int32([1, 0, 0, 1, 0])
PREFIX = {0: "", 1: "auxiliary_"}
SHARED = {"kernel", "head", "reduce", "expand"}  # in paths of what is of no norm
SHAPE = (5, 3, 4, 6)


def values(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def variables():
    """Of one norm; no two of its vectors are alike."""
    names = {"params": ("scale", "bias"), "batch_stats": ("mean", "var")}
    rng = np.random.default_rng(3)
    return {
        kind: {
            p + name: rng.uniform(0.5, 2, 6).astype(np.float32)
            for p in PREFIX.values()
            for name in of
        }
        for kind, of in names.items()
    }


def own(tree, domain):
    """A domain's set, under the names of plain batch norm."""
    flat = flax.traverse_util.flatten_dict(tree)
    found = {}
    for path, leaf in flat.items():
        auxiliary = path[-1].startswith("auxiliary_")
        if auxiliary == bool(domain) or SHARED & set(path):
            found[(*path[:-1], path[-1].removeprefix("auxiliary_"))] = leaf
    return flax.traverse_util.unflatten_dict(found)


def trees_close(ours, expected, share=1e-5):
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=share, atol=share * np.abs(other).max())


def plain(use_running_average):
    return nn.BatchNorm(use_running_average, momentum=0.8, epsilon=1e-5)


NORM = AuxiliaryBatchNorm(momentum=0.8)


def weighted(module, weights, **options):
    """Gradient of a weighted sum of the output in parameters and input; output and statistics."""

    def loss(params, statistics, x):
        all_variables = {"params": params, "batch_stats": statistics}
        out, state = module.apply(all_variables, x, mutable=["batch_stats"], **options)
        return (out * weights).sum(), (out, state["batch_stats"])

    grad = jax.jit(jax.grad(loss, argnums=(0, 2), has_aux=True))
    return lambda v, x: grad(v["params"], v["batch_stats"], x)


@pytest.mark.parametrize("same", [True, False])
def test_each_domain_is_normalised_alone(same):
    x, weights = values(*SHAPE), values(*SHAPE, seed=1)
    if same:
        # As many examples, and the same ones, in both domains.
        x, weights, domain = (np.concatenate([a, a]) for a in (x, weights, 0 * DOMAIN))
        domain[5:] = 1
    else:
        x[DOMAIN == 1] = 3 * x[DOMAIN == 1] + 2
        domain = DOMAIN
    (grads, grad_x), (out, state) = weighted(NORM, weights, domain=domain, train=True)(
        variables(), x
    )
    for index in PREFIX:
        members, mine = domain == index, own(variables(), index)
        alone = weighted(plain(False), weights[members])(mine, x[members])
        trees_close((own(grads, index), grad_x[members]), alone[0])
        trees_close((out[members], own(state, index)), alone[1])
        before = mine["batch_stats"]["mean"]
        assert np.abs(alone[1][1]["mean"] - before).max() > 0.05


@pytest.mark.parametrize("only", [0, 1])
def test_a_domain_without_examples(only):
    """Its statistics stay as they are, bit for bit, and its parameters have no gradient."""
    x, weights = values(*SHAPE), values(*SHAPE, seed=1)
    options = dict(domain=np.full(5, only, np.int32), train=True)
    (grads, grad_x), (out, state) = weighted(NORM, weights, **options)(variables(), x)
    kept = own(variables(), 1 - only)["batch_stats"]
    jax.tree.map(np.testing.assert_array_equal, own(state, 1 - only), kept)
    assert not any(leaf.any() for leaf in jax.tree.leaves(own(grads, 1 - only)))
    assert all(leaf.all() for leaf in jax.tree.leaves(own(grads, only)))
    assert np.isfinite(out).all() and np.isfinite(grad_x).all()
    alone = weighted(plain(False), weights)(own(variables(), only), x)
    trees_close((own(grads, only), grad_x), alone[0])
    trees_close((out, own(state, only)), alone[1])


@pytest.mark.parametrize("domain", [None, DOMAIN])
def test_evaluation_takes_the_moving_statistics(domain):
    x = values(*SHAPE)
    out, state = NORM.apply(variables(), x, domain, mutable=["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, state["batch_stats"], variables()["batch_stats"])
    assert out.shape == SHAPE
    for index in PREFIX if domain is not None else (0,):
        members = slice(None) if domain is None else domain == index
        expected = plain(True).apply(own(variables(), index), x[members])
        trees_close(out[members], expected)


NETS = {
    "resnet": functools.partial(ResNet, bottleneck=False, small_stem=True),
    "resnet_rs": functools.partial(ResNetRS, dropout=0.0),
}


def pair(name):
    """A network with two sets of batch norms, the same with one, and variables of the first."""
    nets = [
        NETS[name](num_classes=3, stage_sizes=(1, 1), width=4, auxiliary_batch_norm=auxiliary)
        for auxiliary in (True, False)
    ]
    shapes = jax.eval_shape(nets[0].init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    rng = np.random.default_rng(0)
    draw = lambda leaf: rng.uniform(0.2, 1, leaf.shape).astype(np.float32)  # noqa: E731
    signs = lambda leaf: rng.choice([-1, 1], leaf.shape) if leaf.ndim > 1 else 1  # noqa: E731
    return *nets, jax.tree.map(lambda leaf: (draw(leaf) * signs(leaf)).astype(np.float32), shapes)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_networks(name):
    """Training: each half as in a plain one; evaluation: the real set, whatever the other is."""
    model, single, found = pair(name)
    images, domain = values(6, 8, 8, 1), np.int32([0, 0, 1, 0, 1, 1])
    images[domain == 1] = 2 * images[domain == 1] + 1
    train = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    train_single = jax.jit(functools.partial(single.apply, train=True, mutable=["batch_stats"]))
    logits, state = train(found, images, domain=domain)
    for index in PREFIX:
        expected, moved = train_single(own(found, index), images[domain == index])
        trees_close(logits[domain == index], expected, 3e-4)  # many layers
        trees_close(own(state, index), moved, 3e-4)
    broken = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * np.nan if "auxiliary_" in path[-1].key else leaf, found
    )
    expected = jax.jit(single.apply)(own(found, 0), images)
    assert np.std(expected) > 0.01
    trees_close(jax.jit(model.apply)(broken, images), expected, 3e-4)
    assert np.isnan(jax.jit(model.apply)(broken, images, domain=domain)[domain == 1]).all()


def test_training_needs_the_domain():
    model, _, found = pair("resnet")
    with pytest.raises(InputError, match="needs the domain of every example"):
        model.apply(found, values(2, 8, 8, 1), train=True, mutable=["batch_stats"])


@pytest.mark.slow
def test_the_training_step_passes_the_domain():
    model, _, found = pair("resnet")
    optimizer = dict(
        name="sgd",
        clip_norm=0.0,
        weight_decay=0.0,
        learning_rate=0.1,
        schedule="constant",
        warmup_steps=0,
    )
    fields = dict(label_smoothing=0.0, ema={}, total_steps=1, train_sources=dict(real={}))
    config = ConfigDict(
        dict(fields, optimizer=optimizer, model=dict(name="resnet", stage_sizes=(1, 1), width=4))
    )
    training = Training.of(config, 3, (8, 8, 1))
    tx, mesh = optax.sgd(0.1), make_mesh({})
    update = jax.jit(dataclasses.replace(training, model=model, tx=tx).update)
    state = create_state(lambda v: jax.tree.map(jnp.asarray, v), (found,), tx, (), mesh)
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)
    batch = dict(image=images, label=np.int32([0, 1, 2, 0]))
    for index in PREFIX:
        domain = np.full(4, index, np.int32)
        moved, metrics = update(state, {**batch, "domain": domain})
        assert np.isfinite(metrics["loss"])
        for kind in ("params", "batch_stats"):
            before, after = (
                flax.traverse_util.flatten_dict(t[kind]) for t in (found, moved.variables)
            )
            of_norms = {path for path in before if not SHARED & set(path)}
            changed = {path for path in of_norms if (before[path] != after[path]).any()}
            expected = {p for p in of_norms if p[-1].startswith("auxiliary_") == bool(index)}
            assert changed and changed == expected


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lamb"])
def test_only_kernels_are_decayed(optimizer):
    shared = dict(learning_rate=0.1, schedule="constant", warmup_steps=0, clip_norm=0.0)
    tx = make_optimizer(ConfigDict(dict(name=optimizer, weight_decay=0.1, **shared)), 1)
    params = pair("resnet_rs")[2]["params"]
    updates, _ = jax.jit(tx.update)(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    for path, leaf in flax.traverse_util.flatten_dict(updates).items():
        assert leaf.all() == leaf.any() == (path[-1] == "kernel"), path


@pytest.mark.slow  # half a minute; gradients on meshes have a faster test
def test_on_four_devices():
    found = run_on(4, "tests.classifiers.models.norm_devices")
    assert set(found) == {"resnet", "resnet_rs"}
    for errors in found.values():
        assert set(errors) == {"logits", "gradient", "batch_stats"}
        assert max(errors.values()) < 1e-5
