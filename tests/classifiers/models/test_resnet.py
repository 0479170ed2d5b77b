"""ResNets against an independent implementation in PyTorch, and the published sizes."""

import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from classifiers.models.resnet import ResNet

# He et al. 2016, table 1; parameters as torchvision counts them.
PUBLISHED = {
    "ResNet-50": ((3, 4, 6, 3), 25_557_032),
    "ResNet-101": ((3, 4, 23, 3), 44_549_160),
    "ResNet-152": ((3, 8, 36, 3), 60_192_808),
}


@pytest.mark.parametrize(("stage_sizes", "count"), PUBLISHED.values(), ids=PUBLISHED)
def test_number_of_parameters(stage_sizes, count):
    model = ResNet(num_classes=1000, stage_sizes=stage_sizes)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count


NETWORKS = {
    # Both stems and both blocks; strides, and shortcuts with and without a convolution.
    "large": dict(stage_sizes=(2, 1), width=4, bottleneck=True, small_stem=False),
    "small": dict(stage_sizes=(1, 2), width=6, bottleneck=False, small_stem=True),
}
SIZES = {"large": 24, "small": 9}
MOMENTUM = 0.8


def reference(fields, weights, images, train):
    """ResNet v1.5 by PyTorch's functions.

    Returns:
        Features, logits, and the running means and variances after it.
    """
    tensors = {name: torch.tensor(value) for name, value in weights.items()}
    statistics = {}

    def conv(x, name, stride):
        kernel = tensors[f"params.{name}.kernel"].permute(3, 2, 0, 1)
        return F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    def norm(x, name):
        scale, bias = (tensors[f"params.{name}.{part}"] for part in ("scale", "bias"))
        mean, var = (tensors[f"batch_stats.{name}.{part}"].clone() for part in ("mean", "var"))
        kept, count = MOMENTUM * var, x.numel() // x.shape[1]
        x = F.batch_norm(x, mean, var, scale, bias, train, 1 - MOMENTUM, 1e-5)
        if train:
            # PyTorch notes the unbiased variance, flax the one that it divides by.
            var = kept + (var - kept) * (count - 1) / count
        statistics.update({f"{name}.mean": mean.numpy(), f"{name}.var": var.numpy()})
        return x

    x, small = torch.tensor(images).permute(0, 3, 1, 2), fields["small_stem"]
    x = F.relu(norm(conv(x, "stem_conv", 1 if small else 2), "stem_norm"))
    x = x if small else F.max_pool2d(x, 3, 2, 1)
    for stage, size in enumerate(fields["stage_sizes"]):
        for index in range(size):
            block = f"stage_{stage}_block_{index}"
            stride = 2 if stage and not index else 1
            strides = (1, stride, 1) if fields["bottleneck"] else (stride, 1)
            h = x
            for layer, step in enumerate(strides):
                h = norm(conv(h, f"{block}.conv_{layer}", step), f"{block}.norm_{layer}")
                h = h if layer == len(strides) - 1 else F.relu(h)
            if f"params.{block}.shortcut_conv.kernel" in tensors:
                x = norm(conv(x, f"{block}.shortcut_conv", stride), f"{block}.shortcut_norm")
            x = F.relu(x + h)
    features = x.mean((2, 3))
    logits = features @ tensors["params.head.kernel"] + tensors["params.head.bias"]
    return features.numpy(), logits.numpy(), statistics


@functools.cache
def network(name):
    """A model, random variables (no scale is zero) and images."""
    model = ResNet(num_classes=5, momentum=MOMENTUM, **NETWORKS[name])
    rng = np.random.default_rng(0)
    images = rng.normal(size=(6, SIZES[name], SIZES[name], 3)).astype(np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)

    def draw(path, leaf):
        kind = path[-1].key
        if kind in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        spread = np.prod(leaf.shape[:-1]) ** -0.5 if kind == "kernel" else 0.3
        return rng.normal(0, spread, leaf.shape).astype(np.float32)

    return model, jax.tree_util.tree_map_with_path(draw, shapes), images


def flat(variables):
    return flax.traverse_util.flatten_dict(variables, sep=".")


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_evaluation_against_torch(name):
    model, variables, images = network(name)
    features, logits, _ = reference(NETWORKS[name], flat(variables), images, train=False)
    run = jax.jit(lambda v, x: (model.apply(v, x), model.apply(v, x, features=True)))
    ours, our_features = run(variables, images)
    assert ours.shape == (6, 5) and np.std(logits) > 0.1
    # [b, channels of the last stage]
    assert our_features.shape == (6, {"large": 4 * 4 * 2, "small": 6 * 2}[name])
    close(ours, logits)
    close(our_features, features)


@pytest.mark.parametrize("name", NETWORKS)
def test_training_against_torch(name):
    model, variables, images = network(name)
    _, logits, statistics = reference(NETWORKS[name], flat(variables), images, train=True)
    run = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    ours, state = run(variables, images)
    close(ours, logits)
    assert set(state) == {"batch_stats"}
    moved = flat(state["batch_stats"])
    assert moved.keys() == statistics.keys()
    for key, expected in statistics.items():
        assert np.abs(expected - flat(variables)[f"batch_stats.{key}"]).max() > 1e-3
        close(moved[key], expected)


def test_statistics_stay_in_evaluation():
    model, variables, images = network("small")
    run = jax.jit(functools.partial(model.apply, mutable=["batch_stats"]))
    _, state = run(variables, images)
    jax.tree.map(np.testing.assert_array_equal, state["batch_stats"], variables["batch_stats"])


def test_a_block_starts_as_the_identity():
    model = ResNet(num_classes=2, stage_sizes=(1,), width=2, bottleneck=False, small_stem=True)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
    block = variables["params"]["stage_0_block_0"]
    assert block["norm_0"]["scale"].tolist() == [1, 1]
    assert block["norm_1"]["scale"].tolist() == [0, 0]


def test_half_precision_keeps_parameters_and_logits_in_float32():
    model = ResNet(num_classes=3, dtype=jnp.bfloat16, **NETWORKS["large"])
    image = jnp.zeros((1, 24, 24, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    for features in (False, True):
        run = functools.partial(model.apply, features=features)
        assert jax.eval_shape(run, variables, image).dtype == jnp.float32
