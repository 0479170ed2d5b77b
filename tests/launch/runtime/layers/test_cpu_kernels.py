"""The forms for CPUs compute what JAX does, and only where they are meant to be used."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from launch.runtime.layers import cpu_kernels, layers

# Height, width, kernel, strides, padding.
CONVOLUTIONS = [
    (6, 5, (1, 1), 1, [(0, 0)] * 2),
    (7, 6, (1, 1), 2, [(0, 0)] * 2),
    (6, 5, (1, 1), 1, [(1, 1)] * 2),
    (6, 5, (3, 3), 1, [(1, 1)] * 2),
    (7, 6, (3, 3), 2, [(1, 1)] * 2),
    (9, 12, (7, 5), (2, 3), [(3, 3), (2, 0)]),
    (8, 8, (3, 3), 2, "SAME"),
    (8, 9, (2, 3), 1, "VALID"),
    (8, 9, (3, 2), 2, "VALID"),
]


@pytest.fixture
def always(monkeypatch):
    for name in ("LARGE", "_LARGE_DEPTHWISE", "_LARGE_SUM", "_MANY_ROWS"):
        monkeypatch.setattr(cpu_kernels, name, 0)


def pair(ours, theirs, shape, **fields):
    """Values and gradients of our layer and of Flax's, with the same parameters."""
    dtype = fields.get("dtype", jnp.float32)
    x = jax.random.normal(jax.random.key(0), shape, dtype)
    params = theirs(**fields).init(jax.random.key(1), x)
    assert "custom_vjp" in traced(ours(**fields), params, x)

    def value(layer, params, x):
        return jnp.sum(jnp.sin(layer(**fields).apply(params, x)))

    return [
        jax.jit(jax.value_and_grad(functools.partial(value, layer), (0, 1)))(params, x)
        for layer in (ours, theirs)
    ]


def assert_close(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def traced(layer, params, x):
    return str(jax.make_jaxpr(layer.apply)(params, x))


@pytest.mark.parametrize(("height", "width", "kernel", "strides", "padding"), CONVOLUTIONS)
def test_convolutions(height, width, kernel, strides, padding, always):
    fields = dict(features=5, kernel_size=kernel, strides=strides, padding=padding)
    assert_close(*pair(layers.Conv, nn.Conv, (2, height, width, 3), **fields))


@pytest.mark.parametrize(("height", "width", "kernel", "strides", "padding"), CONVOLUTIONS)
def test_depthwise_convolutions(height, width, kernel, strides, padding, always):
    fields = dict(features=3, kernel_size=kernel, strides=strides, padding=padding)
    fields["feature_group_count"] = 3
    assert_close(*pair(layers.Conv, nn.Conv, (2, height, width, 3), **fields))
    layer, x = layers.Conv(**fields), jnp.ones((2, height, width, 3))
    assert "conv_general_dilated" not in traced(layer, layer.init(jax.random.key(0), x), x)


@pytest.mark.parametrize("strides", [1, 2])
def test_a_pointwise_convolution_is_a_product(strides, always):
    x, layer = jnp.ones((2, 6, 5, 3)), layers.Conv(4, (1, 1), strides)
    params = layer.init(jax.random.key(0), x)
    assert "conv_general_dilated" not in traced(layer, params, x)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "plain", "fields"),
    [
        (layers.Conv, nn.Conv, dict(kernel_size=(3, 3))),
        (layers.Conv, nn.Conv, dict(kernel_size=(3, 3), feature_group_count=4)),
        (layers.Dense, nn.Dense, {}),
    ],
)
def test_half_precision(layer, plain, fields, always):
    """As near to float32 as Flax's own layer, sums of thousands of terms included."""
    fields = dict(features=4, **fields)
    ((_, exact), _), ours, theirs = (
        pair(layer, plain, (8, 32, 32, 4), **fields),
        *pair(layer, plain, (8, 32, 32, 4), **fields, dtype=jnp.bfloat16),
    )
    for a, b, c in zip(*map(jax.tree.leaves, (ours[1], theirs[1], exact)), strict=True):
        assert a.dtype == b.dtype
        errors = [np.abs(np.asarray(one, np.float32) - c).mean() for one in (a, b)]
        assert errors[0] <= 1.5 * errors[1]


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 4), (2, 3, 2, 5)])
def test_dense_layers(shape, always):
    assert_close(*pair(layers.Dense, nn.Dense, shape, features=6))


@pytest.mark.parametrize(
    "fields",
    [
        dict(kernel_size=(3,)),
        dict(kernel_size=(3, 3), feature_group_count=2),
        dict(kernel_size=(3, 3), feature_group_count=4, features=8),
        dict(kernel_size=(3, 3), feature_group_count=4, features=4, kernel_dilation=2),
        dict(kernel_size=(3, 3), kernel_dilation=2),
        dict(kernel_size=(8, 8), strides=8),
        dict(kernel_size=(3, 3), padding=[(-1, 0), (0, 0)]),
        dict(kernel_size=(1, 1), precision="highest"),
    ],
)
def test_other_convolutions_are_left_alone(fields, always):
    x = jnp.ones((2, 16, 16, 4) if len(fields["kernel_size"]) == 2 else (2, 16, 4))
    layer = layers.Conv(**dict(features=6) | fields)
    params = layer.init(jax.random.key(0), x)
    assert "custom_vjp" not in traced(layer, params, x)


def test_small_products_are_left_alone(monkeypatch):
    x, conv, dense = jnp.ones((2, 8, 8, 4)), layers.Conv(6, (3, 3)), layers.Dense(6)
    of_conv, of_dense = (layer.init(jax.random.key(0), x) for layer in (conv, dense))
    for layer, params, size in ((conv, of_conv, 2 * 128 * 9 * 24), (dense, of_dense, 2 * 128 * 24)):
        for large, expected in ((size, True), (size + 1, False)):
            monkeypatch.setattr(cpu_kernels, "LARGE", large)
            assert ("custom_vjp" in traced(layer, params, x)) == expected


def test_windows_larger_than_the_image_see_nothing(always):
    layer = layers.Conv(4, (7, 7), padding="VALID", feature_group_count=4)
    params = layer.init(jax.random.key(0), jnp.ones((1, 7, 7, 4)))
    assert layer.apply(params, jnp.ones((2, 5, 5, 4))).shape == (2, 0, 0, 4)


def test_depthwise_convolutions_on_a_mesh_are_left_alone(always):
    """The gradient of the form for CPUs would gather the whole batch on each device."""
    layer, x = layers.Conv(4, (3, 3), feature_group_count=4), jnp.ones((2, 8, 8, 4))
    params = layer.init(jax.random.key(0), x)
    for devices, plain in ((1, False), (2, True)):
        device = AbstractDevice("cpu", None, "cpu")
        mesh = AbstractMesh((devices, 1, 1), ("data", "fsdp", "tensor"), abstract_device=device)
        with jax.sharding.use_abstract_mesh(mesh):
            assert ("conv_general_dilated" in traced(layer, params, x)) == plain


def test_small_depthwise_convolutions_are_left_alone(monkeypatch):
    layer, x = layers.Conv(4, (3, 3), feature_group_count=4), jnp.ones((2, 8, 8, 4))
    params, flops = layer.init(jax.random.key(0), x), 2 * 128 * 9 * 4
    for large, expected in ((flops, True), (flops + 1, False)):
        monkeypatch.setattr(cpu_kernels, "_LARGE_DEPTHWISE", large)
        assert ("custom_vjp" in traced(layer, params, x)) == expected


@pytest.mark.parametrize("kind", ["tpu", "gpu"])
@pytest.mark.parametrize(
    "layer",
    [
        layers.Conv(6, (3, 3)),
        layers.Conv(6, (1, 1)),
        layers.Conv(4, (3, 3), feature_group_count=4),
        layers.Dense(6),
    ],
)
def test_other_platforms_are_left_alone(layer, kind, always):
    x = jnp.ones((2, 8, 8, 4))
    params = layer.init(jax.random.key(0), x)
    mesh = AbstractMesh((1,), ("data",), abstract_device=AbstractDevice(kind, None, kind))
    assert "custom_vjp" in traced(layer, params, x)
    with jax.sharding.use_abstract_mesh(mesh):
        assert "custom_vjp" not in traced(layer, params, x)


@pytest.mark.parametrize(("kernel", "groups"), [((1, 1), 1), ((3, 3), 1), ((3, 3), 4)])
def test_seeds_at_once(kernel, groups, always):
    x = jax.random.normal(jax.random.key(0), (3, 2, 6, 6, 4))
    fields = dict(features=5 if groups == 1 else 4, kernel_size=kernel, feature_group_count=groups)
    ours, theirs = layers.Conv(**fields), nn.Conv(**fields)
    params = jax.vmap(theirs.init)(jax.random.split(jax.random.key(1), 3), x)

    def gradient(layer):
        return jax.vmap(jax.grad(lambda params, x: jnp.sum(jnp.sin(layer.apply(params, x)))))

    assert_close(*(jax.jit(gradient(layer))(params, x) for layer in (ours, theirs)))


def test_sums_of_branches(always):
    """Each is computed once, however deep the network; numbers stay what they are."""
    x = jax.random.normal(jax.random.key(0), (4, 8, 16))
    kernels = list(jax.random.normal(jax.random.key(1), (6, 16, 16)))

    def gradient(add):
        def value(kernels, x):
            for kernel in kernels:
                normed = x / jnp.sqrt(1 + jnp.mean(x * x, axis=-1, keepdims=True))
                x = add(x, jnp.tanh(normed @ kernel))
            return jnp.sum(jnp.sin(x))

        return jax.jit(jax.value_and_grad(value)).lower(kernels, x).compile()

    kept, plain = gradient(cpu_kernels.add_branch), gradient(jnp.add)
    for a, b in zip(*(jax.tree.leaves(each(kernels, x)) for each in (kept, plain)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert " call(" in kept.as_text() and " call(" not in plain.as_text()
    assert _most_operands(kept) <= 6 < _most_operands(plain)
    mesh = AbstractMesh((1,), ("data",), abstract_device=AbstractDevice("tpu", None, "tpu"))
    with jax.sharding.use_abstract_mesh(mesh):
        assert "custom_vjp" not in str(jax.make_jaxpr(cpu_kernels.add_branch)(x, x))
    assert "custom_vjp" in str(jax.make_jaxpr(cpu_kernels.add_branch)(x, x))


def _most_operands(program):
    lines = (line for line in program.as_text().splitlines() if " fusion(" in line)
    return max(line.split(" fusion(")[1].split(")")[0].count("%") for line in lines)


@pytest.mark.parametrize("name", layers.ACTIVATIONS)
def test_only_the_input_of_an_activation_is_kept(name):
    x = jnp.linspace(-4.0, 4.0, 9)
    value, backward = jax.vjp(layers.activation(name), x)
    expected, plain_backward = jax.vjp(layers.ACTIVATIONS[name], x)
    assert_close((value, backward(x)), (expected, plain_backward(x)))
    kept, plain = (len(jax.tree.leaves(one)) for one in (backward, plain_backward))
    assert kept == 1 < plain


def test_attention():
    """From 64 x 64 tokens on the form for CPUs, whose gradient is our own."""
    shapes = [(2, length, 3, 8) for length in (80, 96, 96, 80)]
    query, key, value, weights = (
        jax.random.normal(jax.random.key(n), shape) for n, shape in enumerate(shapes)
    )

    def gradient(attend):
        value_of = lambda *arrays: jnp.sum(weights * attend(*arrays))  # noqa: E731
        return jax.jit(jax.value_and_grad(value_of, (0, 1, 2)))(query, key, value)

    assert_close(gradient(layers.attend), gradient(layers.attend_plainly))
    for length, dtype, expected in (
        (80, jnp.float32, 1),
        (48, jnp.float32, 0),
        (80, jnp.bfloat16, 0),
    ):
        arrays = [x[:, :length].astype(dtype) for x in (query, key, value)]
        assert ("custom_vjp" in str(jax.make_jaxpr(layers.attend)(*arrays))) == expected


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_branch_in_half_precision(dtype, always):
    """The stream stays in float32; each gets a gradient of its own type."""
    x, branch = jnp.ones((2, 3)), jnp.ones((2, 3), dtype)
    value = lambda x, branch: jnp.sum(jnp.sin(cpu_kernels.add_branch(x, branch)))  # noqa: E731
    found = jax.grad(value, (0, 1))(x, branch)
    assert [gradient.dtype for gradient in found] == [jnp.float32, dtype]
    assert_close(found, (jnp.cos(x + branch), jnp.cos(x + branch).astype(dtype)))


def test_few_rows(monkeypatch):
    """Below the limit the kernel is not turned first; the gradient is the same."""
    monkeypatch.setattr(cpu_kernels, "LARGE", 0)
    for rows, barriers in ((8, False), (cpu_kernels._MANY_ROWS, True)):
        x, kernel = jnp.ones((rows, 4)), jnp.ones((4, 6))
        gradient = jax.grad(lambda x, kernel: jnp.sum(cpu_kernels._product(x, kernel)))
        assert ("optimization_barrier" in str(jax.make_jaxpr(gradient)(x, kernel))) == barriers
        np.testing.assert_allclose(gradient(x, kernel), 6.0)
