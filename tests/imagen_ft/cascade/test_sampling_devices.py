"""How sampling runs: on eight devices, in how many programs, in how much memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_ft.cascade import Request
from tests.support.devices import run_on_eight
from tests.support.small_cascade import (
    NAMES,
    encoder,
    low_images,
    make_cascade,
    with_batches,
)


@pytest.fixture(scope="module")
def eight():
    return run_on_eight("tests.imagen_ft.cascade.sampling_devices")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["base", "super-resolution"])
def test_images_do_not_depend_on_devices_and_batches(eight, stage):
    found = eight[stage]
    # Of 64 images each of eight devices has drawn eight.
    assert found["held"] == [1, 64, 8]
    assert found["noise"] == {"eight devices": True, "batch 1": True}
    assert max(found["pixels"].values()) <= 1e-5
    assert found["spread"] > 0.1


@pytest.mark.slow
def test_what_devices_decide_of_rounding(eight, cascade):
    shared = {"device": "cpu", "several_devices": True}
    assert eight["rounding"] == [
        shared | {"images_per_device": [4, 4], "fsdp": 1, "tensor": 1},
        shared | {"images_per_device": [5, 5], "fsdp": 2, "tensor": 2},
    ]
    alone = with_batches(cascade, 0, 30).rounding()
    assert not alone["several_devices"] and alone["images_per_device"] == [100, 30]
    with jax.default_matmul_precision("bfloat16"):
        said = with_batches(cascade, 0, 30).rounding()
    assert said == alone | {"matmul_precision": "bfloat16"}


@pytest.fixture(scope="module")
def cascade():
    return make_cascade()


@pytest.fixture
def compiled():
    """Names of the programs that have been compiled, or read from the cache of compiled ones."""
    names = []

    def listen(event, _, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(details["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.slow
def test_one_compilation_a_stage_and_shape(cascade, compiled):
    own = with_batches(cascade, 3, 4)
    count = lambda: compiled.count("jit(sample)")  # noqa: E731
    own.sample(["c", "ab", "de", "c", "ab", "c", "de"], batch_size=4)
    assert count() == 2
    own.sample(["ab"] * 5, seed=1, indices=np.arange(40, 45), batch_size=4)
    assert count() == 2
    # Whoever asks for fewer gets the same program, unless nothing is said of batches.
    own.sample(["ab"] * 3, batch_size=4)
    list(dataclasses.replace(own, batch_size=4).stream(Request(["ab"])))
    assert count() == 2
    own.sample(["ab"] * 3)
    assert count() == 3


def device_inputs(number, count=3):
    low = jnp.asarray(low_images(count)) if number else None
    states, null = (jnp.asarray(part) for part in (encoder().embed(NAMES), encoder().null()))
    return jax.random.split(jax.random.key(3), count), states, null, low


@pytest.mark.parametrize("number", [0, 1], ids=["base", "super-resolution"])
def test_nothing_moves_between_host_and_device(cascade, number):
    stage, inputs = cascade.stages[number], device_inputs(number)
    variables = jax.device_put(cascade.variables[number])
    expected = stage.sample(variables, *inputs)
    with jax.transfer_guard("disallow"):
        found = jax.block_until_ready(stage.sample(variables, *inputs))
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
            stage.sample(variables, inputs[0], np.asarray(inputs[1]), *inputs[2:])
    np.testing.assert_array_equal(found, expected)
    # One program, which calls nothing of the host's while it runs.
    program = type(stage).sample.trace(stage, variables, *inputs).jaxpr
    assert "callback" not in str(program) and not program.effects


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1], ids=["base", "super-resolution"])
def test_memory_does_not_grow_with_steps(cascade, number):
    def memory(num_steps, method):
        sampler = dataclasses.replace(cascade.stages[number].sampler, num_steps=num_steps)
        stage = dataclasses.replace(cascade.stages[number], sampler=sampler)
        program = getattr(type(stage), method)
        program = program.lower(stage, cascade.variables[number], *device_inputs(number)).compile()
        used = program.memory_analysis()
        return used.temp_size_in_bytes + used.output_size_in_bytes

    few, many = memory(4, "sample"), memory(64, "sample")
    # A time and a number a step.
    assert 0 <= many - few <= 60 * 16
    image = 4 * 3 * cascade.stages[number].denoiser.size ** 2
    assert memory(64, "path") - many > 60 * image
