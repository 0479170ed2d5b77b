"""One step of training, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from launch.runtime.mesh import make_mesh
from launch.runtime.state import abstract_state, create_state

TX = optax.sgd(0.5)


def init(key):
    return {"params": {"w": jnp.float32([1, 2])}, "batch_stats": {"mean": jnp.float32([3])}}


def new_state(keep_ema):
    return create_state(init, (jax.random.key(0),), TX, keep_ema, make_mesh({"data": -1}))


def test_a_new_state():
    state = new_state(keep_ema=True)
    assert state.step == 0
    jax.tree.map(np.testing.assert_array_equal, state.variables, init(None))
    jax.tree.map(np.testing.assert_array_equal, state.ema, init(None))
    shapes = abstract_state(init, (jax.random.key(0),), TX, True)
    assert jax.tree.structure(shapes) == jax.tree.structure(state)
    for shape, leaf in zip(jax.tree.leaves(shapes), jax.tree.leaves(state), strict=True):
        assert (shape.shape, shape.dtype) == (leaf.shape, leaf.dtype)


@pytest.mark.parametrize("limit", [0.15, 0.99])
def test_updates_and_their_average(limit):
    state, grads = new_state(keep_ema=True), {"w": jnp.float32([2, -2])}
    w, average = np.float64([1, 2]), {"w": np.float64([1, 2]), "mean": np.float64([3])}
    for n in range(3):
        mean = 10.0 + n
        state = state.update(grads, TX, limit, {"batch_stats": {"mean": jnp.float32([mean])}})
        w = w - 0.5 * np.float64([2, -2])
        decay = min(limit, (1 + n) / (10 + n))
        for name, value in (("w", w), ("mean", mean)):
            average[name] = decay * average[name] + (1 - decay) * value
        assert state.step == n + 1
        np.testing.assert_allclose(state.variables["params"]["w"], w, rtol=1e-6)
        assert state.variables["batch_stats"]["mean"] == mean
        # The statistics are averaged like the weights that they belong to.
        np.testing.assert_allclose(state.ema["params"]["w"], average["w"], rtol=1e-6)
        np.testing.assert_allclose(state.ema["batch_stats"]["mean"], average["mean"], rtol=1e-6)
        assert state.inference_variables is state.ema


def test_without_an_average():
    state = new_state(keep_ema=False).update({"w": jnp.float32([2, 0])}, TX, 0.9)
    assert state.ema is None and state.inference_variables is state.variables
    assert state.variables["params"]["w"].tolist() == [0, 2]
    assert state.variables["batch_stats"]["mean"].tolist() == [3]
