import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_ft.models.unet import UNet
from tests.parity.torch_weights import relative_error
from tests.support.close import assert_same_up_to_rounding

CONFIG = dict(
    out_channels=6,
    block_out_channels=(8, 16),
    layers_per_block=1,
    attention=(False, True),
    cross_attention_dim=8,
    attention_head_dim=4,
    num_groups=4,
    cross_num_groups=4,
    pooling_heads=2,
    noise_level=True,
)


def inputs():
    rng = np.random.default_rng(0)
    x, text = (rng.normal(size=size).astype(np.float32) for size in ((2, 8, 8, 6), (2, 5, 12)))
    return x, np.float32([17, 803]), text, np.float32([250, 0])


@functools.cache
def variables():
    """Values by NumPy: compiling flax's own takes longer than these tests."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(UNet(**CONFIG).init, jax.random.key(0), *inputs())
    return jax.tree.map(
        lambda leaf: np.float32(
            rng.normal(0.1, max(leaf.size / leaf.shape[-1], 9) ** -0.5, leaf.shape)
        ),
        shapes,
    )


def run(model):
    return jax.jit(model.apply)(variables(), *inputs())


@pytest.mark.slow
def test_context_is_all_that_text_and_level_do():
    model = UNet(**CONFIG)
    x, t, text, level = inputs()

    @jax.jit
    def in_two(variables):
        context = model.apply(variables, text, level, method="context")
        return model.apply(variables, x, t, context, method="denoise")

    assert_same_up_to_rounding(in_two(variables()), run(model))


@pytest.mark.slow
@pytest.mark.parametrize(("field", "row"), [("x", 0), ("t", 1), ("text", 2), ("noise_level", 3)])
def test_every_input_matters(field, row):
    model, changed = UNet(**CONFIG), list(inputs())
    changed[row] = changed[row][::-1]  # those of the other image
    other = jax.jit(model.apply)(variables(), *changed)
    assert np.abs(other - run(model)).max() > 1e-4


def test_noise_level_goes_with_its_model():
    x, t, text, level = inputs()
    for model, given in ((UNet(**CONFIG), None), (UNet(**dict(CONFIG, noise_level=False)), level)):
        with pytest.raises(ValueError, match="noise_level"):
            jax.eval_shape(model.init, jax.random.key(0), x, t, text, given)


def test_bfloat16():
    exact, half = run(UNet(**CONFIG)), run(UNet(**CONFIG, dtype=jnp.bfloat16))
    assert half.dtype == jnp.float32
    assert 1e-4 < relative_error(half, exact) < 0.03


def rematerialised(remat):
    """How many parts of the network the backward pass computes again."""
    model = UNet(**CONFIG, remat=remat)
    program = jax.make_jaxpr(model.apply)(variables(), *inputs())
    return sum(step.primitive.name in ("remat", "remat2", "checkpoint") for step in program.eqns)


def test_remat_is_chosen_by_level():
    # Down: a resnet (and its attention), a downsampler; the middle; up: two of each, an upsampler.
    fine, coarse = 1 + 1 + 2, 2 + 3 + 4 + 1
    assert rematerialised(False) == 0
    assert rematerialised((True, False)) == fine
    assert rematerialised((False, True)) == coarse
    assert rematerialised(True) == fine + coarse


@pytest.mark.slow
def test_remat_changes_no_result():
    def output_and_gradient(remat):
        model = UNet(**CONFIG, remat=remat)
        loss = lambda variables: jnp.square(model.apply(variables, *inputs())).mean()  # noqa: E731
        return jax.jit(jax.value_and_grad(loss))(variables())

    assert_same_up_to_rounding(output_and_gradient(True), output_and_gradient(False))


@pytest.mark.slow
def test_float16_where_it_would_overflow():
    """A stream of 1e4 has squares, and queries and keys have products, beyond 65,504."""
    model = UNet(
        out_channels=3, block_out_channels=(16,), layers_per_block=1, attention=(True,),
        cross_attention_dim=16, attention_head_dim=8, num_groups=4, cross_num_groups=4,
        pooling_heads=2,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    inputs = draw(2, 4, 4, 3), np.float32([17, 803]), draw(2, 5, 16)
    scales = {"conv_in": 1e4, "to_q": 300, "to_k": 300, "add_k_proj": 300}

    def weights(path, leaf):
        names = [entry.key for entry in path]
        values = draw(*leaf.shape) * max(math.prod(leaf.shape[:-1]), 25) ** -0.5
        values = values + 1 if names[-1] == "scale" else values
        return values * scales.get(names[-2], 1)

    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    variables, outputs = jax.tree_util.tree_map_with_path(weights, shapes), {}
    for dtype in (jnp.float32, jnp.float16):
        apply = jax.jit(
            functools.partial(model.clone(dtype=dtype).apply, capture_intermediates=True),
            compiler_options={"xla_backend_optimization_level": 0},
        )
        outputs[dtype], state = apply(variables, *inputs)
        inner = state["intermediates"]
        assert np.abs(inner["conv_in"]["__call__"][0]).max() > 1e4
        query, key = (
            np.asarray(inner["mid_block_attentions_0"][name]["__call__"][0], np.float32)
            for name in ("to_q", "to_k")
        )
        assert np.abs(query[..., :8] @ key[..., :8].swapaxes(1, 2)).max() > 65_504
    assert relative_error(outputs[jnp.float16], outputs[jnp.float32]) < 1e-2
