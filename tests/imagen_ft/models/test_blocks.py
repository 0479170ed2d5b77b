import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from imagen_ft.models.blocks import AddedKVAttention, GroupNorm
from launch.runtime.layers import layers
from launch.runtime.layers.layers import attend, gelu


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_group_norm_is_torchs():
    norm, x = GroupNorm(4), 100 + random(2, 6, 5, 12)
    params = {"scale": 1 + random(12, seed=1), "bias": random(12, seed=2)}
    expected = torch.nn.functional.group_norm(
        torch.from_numpy(x).permute(0, 3, 1, 2).double(),
        4,
        *(torch.from_numpy(params[name]).double() for name in ("scale", "bias")),
    )
    normed = norm.apply({"params": params}, x)
    # The mean is a hundred times the deviation.
    np.testing.assert_allclose(normed, expected.permute(0, 2, 3, 1), atol=2e-4)


def test_group_norm_has_float32_statistics_in_bfloat16():
    # In bfloat16 a sum of 4,096 ones would stop at 256.
    x = jnp.tile(jnp.bfloat16([1.0, 3.0]), (1, 4096, 2))
    normed = GroupNorm(2, jnp.bfloat16).apply(
        {"params": {"scale": np.ones(4, np.float32), "bias": np.zeros(4, np.float32)}}, x
    )
    assert normed.dtype == jnp.bfloat16
    np.testing.assert_allclose(normed[0, 0], [-1, 1, -1, 1], atol=0.01)


def test_group_norm_names_a_width_that_does_not_divide():
    with pytest.raises(ValueError, match="num_groups must divide 48 channels, got 32"):
        GroupNorm(32).init(jax.random.key(0), jnp.zeros((1, 4, 48)))


def test_gelu_is_exact():
    x = np.linspace(-9, 9, 1001, dtype=np.float32)
    expected = torch.nn.functional.gelu(torch.from_numpy(x).double())
    np.testing.assert_allclose(gelu(x), expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_large_attention_on_cpu_is_the_same(dtype, monkeypatch):
    """Weights and gradient of the form by heads against jax.nn.dot_product_attention."""
    query, key, value = (jnp.asarray(random(2, n, 3, 8, seed=n), dtype) for n in (16, 20, 20))

    def run(limit):
        monkeypatch.setattr(layers, "LARGE_ON_CPU", limit)
        loss = lambda *args: (attend(*args).astype(jnp.float32) ** 2).sum()  # noqa: E731
        return attend(query, key, value), *jax.grad(loss, argnums=(0, 1, 2))(query, key, value)

    tolerance = 1e-5 if dtype == jnp.float32 else 0.03
    for ours, theirs in zip(run(16 * 20), run(16 * 20 + 1), strict=True):
        assert ours.dtype == theirs.dtype == dtype
        error = jnp.abs(ours.astype(jnp.float32) - theirs.astype(jnp.float32)).max()
        assert error <= tolerance * jnp.abs(theirs).max()


@pytest.mark.parametrize(
    ("platform", "dtype", "head_dim", "expected"),
    [
        ("gpu", jnp.bfloat16, 64, "cudnn"),
        ("gpu", jnp.float32, 64, "xla"),
        ("gpu", jnp.bfloat16, 20, "xla"),
        ("gpu", jnp.bfloat16, 256, "xla"),
        ("tpu", jnp.bfloat16, 64, "xla"),
        ("cpu", jnp.float32, 64, "xla"),
    ],
)
def test_attention_by_platform(platform, dtype, head_dim, expected, monkeypatch):
    chosen = []

    def record(query, key, value, *_, implementation, **options):
        chosen.append(implementation)
        return query

    monkeypatch.setattr(layers, "platform", lambda: platform)
    monkeypatch.setattr(jax.nn, "dot_product_attention", record)
    attend(*[jnp.zeros((1, 4, 2, head_dim), dtype)] * 3)
    assert chosen == [expected]


def test_attention_ends_with_what_it_began_with():
    """An attention whose output projection is zero passes its input on."""
    block, x, text = AddedKVAttention(8, 4, 2, 4), random(1, 2, 2, 8), random(1, 3, 8)
    init = lambda key: block.init(key, x, text, method=lambda m, x, text: m(x, m.context(text)))  # noqa: E731
    variables = jax.jit(init)(jax.random.key(0))
    zero = jax.tree.map(jnp.zeros_like, variables)
    context = block.apply(zero, text, method="context")
    np.testing.assert_array_equal(block.apply(zero, x, context), x)
