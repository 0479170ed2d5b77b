"""A batch in chunks against the whole batch; the jitted step with its constants."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from launch.runtime.devices.flops import count_flops
from launch.runtime.devices.mesh import make_mesh
from launch.runtime.state import abstract_state, create_state
from launch.runtime.training.train_step import ON_CPUS, accumulate, is_known, make_step

RNG = np.random.default_rng(0)
EXAMPLES = {"x": RNG.normal(size=(12, 3)).astype(np.float32), "y": np.arange(12.0)}
PARAMS = {"w": jnp.float32([1, -2, 3])}


def loss_of(params, examples):
    losses = (examples["x"] @ params["w"] - examples["y"]) ** 2
    return losses.mean(), {"loss": losses}


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("parts", [1, 3, 12])
def test_parts_make_the_whole(parts, unroll):
    (_, expected), gradient = jax.value_and_grad(loss_of, has_aux=True)(PARAMS, EXAMPLES)
    run = jax.jit(lambda p, e: accumulate(loss_of, p, e, parts, unroll))
    values, grads = run(PARAMS, EXAMPLES)
    np.testing.assert_allclose(values["loss"], expected["loss"], rtol=1e-5)
    np.testing.assert_allclose(grads["w"], gradient["w"], rtol=1e-5)
    loops = "while" in run.lower(PARAMS, EXAMPLES).as_text()
    assert loops == (parts > 1 and not unroll)


def test_a_step_has_its_constants_and_can_be_lowered():
    def init(key):
        return {"params": {"w": jnp.zeros(3)}}

    def update(state, batch, scale):
        mean = jnp.full(4, 0.25) @ batch["x"]
        state, norms = state.update({"w": scale * mean}, optax.sgd(1.0), {})
        return state, norms

    mesh = make_mesh({"data": -1})
    args = (init, (jax.random.key(0),), optax.sgd(1.0), ())
    abstract = abstract_state(*args)
    step = make_step(update, mesh, abstract, (jnp.float32(-2),))
    batch = {"x": jnp.ones((4, 3))}
    before = create_state(*args, mesh)
    state, metrics = step(before, batch)
    assert state.variables["params"]["w"].tolist() == [2, 2, 2]
    assert metrics["gradient_norm"] == pytest.approx(12**0.5)
    assert before.variables["params"]["w"].is_deleted()
    assert "stablehlo" in step.lower(abstract, batch).as_text()
    assert count_flops(step, abstract, batch) == 2 * 4 * 3
    # It has compiler options, which JAX forbids inside another jitted function.
    with pytest.raises(ValueError, match="compiler_options"):
        jax.make_jaxpr(step)(abstract, batch)


def test_options_that_the_compiler_does_not_know_are_left_out():
    assert all(is_known(*option) for option in ON_CPUS.items())
    assert not is_known("xla_cpu_no_such_option", False)
    assert not is_known("xla_cpu_scheduler_type", "NO_SUCH_TYPE")
