"""One step of training, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from launch.runtime.devices.mesh import make_mesh
from launch.runtime.state import abstract_state, create_state, state_of

TX = optax.sgd(0.5)


def init(key):
    return {"params": {"w": jnp.float32([1, 2])}, "batch_stats": {"mean": jnp.float32([3])}}


def new_state(*averages):
    return create_state(init, (jax.random.key(0),), TX, averages, make_mesh({"data": -1}))


def test_a_new_state():
    state = new_state("main", "slow")
    assert state.step == 0
    jax.tree.map(np.testing.assert_array_equal, state.variables, init(None))
    assert set(state.ema) == {"main", "slow"}
    for average in state.ema.values():
        jax.tree.map(np.testing.assert_array_equal, average, init(None))
    shapes = abstract_state(init, (jax.random.key(0),), TX, ("main", "slow"))
    assert jax.tree.structure(shapes) == jax.tree.structure(state)
    for shape, leaf in zip(jax.tree.leaves(shapes), jax.tree.leaves(state), strict=True):
        assert (shape.shape, shape.dtype) == (leaf.shape, leaf.dtype)


def test_updates_and_their_averages():
    state, grads = new_state("main", "slow"), {"w": jnp.float32([2, -2])}
    decays = {"main": lambda n: 0.1 * (n + 1), "slow": lambda n: 0.99}
    w = np.float64([1, 2])
    average = {name: {"w": w, "mean": np.float64([3])} for name in decays}
    for n in range(3):
        mean = 10.0 + n
        state, norms = state.update(
            grads, TX, decays, {"batch_stats": {"mean": jnp.float32([mean])}}
        )
        w = w - 0.5 * np.float64([2, -2])
        assert state.step == n + 1
        np.testing.assert_allclose(norms["gradient_norm"], 8**0.5, rtol=1e-6)
        np.testing.assert_allclose(norms["update_norm"], 2**0.5, rtol=1e-6)
        np.testing.assert_allclose(state.variables["params"]["w"], w, rtol=1e-6)
        assert state.variables["batch_stats"]["mean"] == mean
        for name, decay in decays.items():
            ours, theirs = state.ema[name], average[name]
            for field, value in (("w", w), ("mean", mean)):
                theirs[field] = decay(n) * theirs[field] + (1 - decay(n)) * value
            # The statistics are averaged like the weights that they belong to.
            np.testing.assert_allclose(ours["params"]["w"], theirs["w"], rtol=1e-6)
            np.testing.assert_allclose(ours["batch_stats"]["mean"], theirs["mean"], rtol=1e-6)
        assert state.inference_variables is state.ema["main"]


def test_without_an_average():
    state, _ = new_state().update({"w": jnp.float32([2, 0])}, TX, {})
    assert state.ema == {} and state.inference_variables is state.variables
    assert state.variables["params"]["w"].tolist() == [0, 2]
    assert state.variables["batch_stats"]["mean"].tolist() == [3]


def test_weights_that_are_there_are_taken_over():
    """No second copy of them is made, which large ones would not fit beside."""
    weights = jax.tree.map(jnp.asarray, init(None))
    addresses = jax.tree.map(lambda x: x.unsafe_buffer_pointer(), weights)
    state = state_of(weights, TX, ("main",), make_mesh({"data": -1}))
    assert jax.tree.map(lambda x: x.unsafe_buffer_pointer(), state.variables) == addresses
    average = jax.tree.map(lambda x: x.unsafe_buffer_pointer(), state.ema["main"])
    assert not set(jax.tree.leaves(average)) & set(jax.tree.leaves(addresses))
    expected = new_state("main")
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        assert ours.sharding == theirs.sharding
