"""Which kernel attends on a GPU; no GPU is needed to lower a program for one."""

import jax
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from launch.runtime.layers import layers
from launch.runtime.layers.layers import attend


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(layers, "platform", lambda: "gpu")
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)


def loss(query, key, value):
    return jnp.sin(attend(query, key, value).astype(jnp.float32)).sum()


def arrays(queries, keys):
    seeds = jax.random.split(jax.random.key(0), 3)
    shapes = [(2, length, 2, 8) for length in (queries, keys, keys)]
    return [jax.random.normal(*pair, jnp.bfloat16) for pair in zip(seeds, shapes, strict=True)]


@pytest.mark.parametrize(
    ("queries", "keys", "forward", "gradient"),
    [
        (4, 10, True, True),
        (4, 9, True, False),  # 77 tokens before the pixels
        (5, 5, True, False),  # 196 patches and the class
        (1, 10, False, False),  # pooling
        (1, 9, False, False),
    ],
)
def test_cudnn_where_it_has_a_kernel(queries, keys, forward, gradient, gpu):
    for function, chosen in ((loss, forward), (jax.grad(loss, (0, 1, 2)), gradient)):
        traced = jax.jit(function).trace(*arrays(queries, keys))
        assert ("cudnn$fmha" in traced.lower(lowering_platforms=("cuda",)).as_text()) == chosen


def test_gradient_of_odd_numbers(gpu, monkeypatch):
    ours = jax.jit(jax.grad(loss, (0, 1, 2)))(*arrays(4, 9))
    monkeypatch.undo()
    expected = jax.jit(jax.grad(loss, (0, 1, 2)))(*arrays(4, 9))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, ours, expected))


@pytest.mark.parametrize(
    ("capability", "chosen"),
    [("8.0", True), ("9.0", True), ("10.3", True), ("7.5", False), ("gfx942", False)],
)
def test_cudnn_on_cards_that_have_it(capability, chosen, monkeypatch):
    class Card:
        compute_capability = capability

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [Card()])
    assert layers._suits_cudnn(jnp.zeros((1, 4, 2, 8), jnp.bfloat16)) == chosen
