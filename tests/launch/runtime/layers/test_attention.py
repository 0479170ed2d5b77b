"""Which kernel attends on a GPU; no GPU is needed to lower a program for one."""

from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from launch.runtime.devices import hardware
from launch.runtime.layers import layers
from launch.runtime.layers.layers import LARGE_ON_CPU, attend, attend_plainly
from tests.support.close import assert_same_up_to_rounding


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(layers, "platform", lambda: "gpu")
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)


def loss(query, key, value):
    return jnp.sin(attend(query, key, value).astype(jnp.float32)).sum()


def arrays(queries, keys, dtype=jnp.bfloat16):
    seeds = jax.random.split(jax.random.key(0), 3)
    shapes = [(2, length, 2, 8) for length in (queries, keys, keys)]
    return [jax.random.normal(*pair, dtype) for pair in zip(seeds, shapes, strict=True)]


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


def card(capability, platform="gpu"):
    """What JAX tells of a GPU."""
    return mock.Mock(jax.Device, compute_capability=capability, platform=platform)


CARDS = {
    "T4": (card("7.5"), False, "float16"),
    "V100": (card("7.0"), False, "float16"),
    "A100": (card("8.0"), True, "bfloat16"),
    "H100": (card("9.0"), True, "bfloat16"),
    "B300": (card("10.3"), True, "bfloat16"),
    "MI300": (card("gfx942"), False, "bfloat16"),
    "MI300 as ROCm": (card("gfx942:sramecc+:xnack-", "rocm"), False, "bfloat16"),
}


@pytest.mark.parametrize("name", CARDS)
def test_a_program_that_the_card_can_run(name, monkeypatch):
    device, by_cudnn, half = CARDS[name]
    inputs = [arrays(4, 10, dtype) for dtype in (jnp.bfloat16, jnp.float16)]
    monkeypatch.setattr(layers, "platform", lambda: device.platform)
    monkeypatch.setattr(jax, "default_backend", lambda: device.platform)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    assert hardware.half_dtype(device) == half
    for qkv in inputs:
        traced = jax.jit(lambda *qkv: attend(*qkv)).trace(*qkv)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        assert ("cudnn$fmha" in text) == by_cudnn
        # A product whose algorithm the card may not have: XLA would not compile it.
        assert "algorithm =" not in text


def test_plain_attention_is_that_of_jax():
    """Where JAX's own can be compiled both are."""
    query, key, value = arrays(5, 9)
    bias = jax.random.normal(jax.random.key(1), (1, 2, 5, 9))
    mask = jnp.arange(9)[None] < jnp.array([9, 4])[:, None]
    options = dict(bias=bias, mask=mask[:, None, None], scale=0.7)
    expected = attend_plainly(query, key, value, **options)
    found = layers._attend_by_any_algorithm(query, key, value, **options)
    assert jnp.array_equal(found, expected)
    half = attend_plainly(*(x.astype(jnp.float16) for x in (query, key, value)), **options)
    assert_same_up_to_rounding(half, expected, 1e-2)


def test_processors_and_tpus_are_fast_in_bfloat16():
    assert hardware.half_dtype(jax.devices("cpu")[0]) == "bfloat16"


@pytest.mark.parametrize("queries", [4, LARGE_ON_CPU // 4], ids=["plain", "by head"])
def test_logits_that_float16_does_not_hold(queries):
    """Query n is for key n % 4 alone: its logit is 1e5, all others are 0."""
    rows = 600 * jnp.eye(4, 8, dtype=jnp.float16)
    key = jnp.tile(rows[None, :, None], (2, 1, 2, 1))
    query = jnp.tile(key, (1, queries // 4, 1, 1))
    value = arrays(4, 4, jnp.float16)[2]
    expected = jnp.tile(value, (1, queries // 4, 1, 1))
    assert (
        jnp.isinf(query[0, 0, 0] @ key[0, 0, 0]) and (attend(query, key, value) == expected).all()
    )
