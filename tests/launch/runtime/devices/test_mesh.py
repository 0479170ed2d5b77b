"""Meshes and sharded training, on eight devices in a process of their own."""

import jax.numpy as jnp
import numpy as np
import pytest

from launch.runtime.devices import mesh
from tests.support.devices import run_on_eight


@pytest.fixture(scope="module")
def eight():
    return run_on_eight("tests.launch.runtime.devices.eight_devices")


def test_sizes_multiply_to_the_devices(eight):
    assert eight["sizes"] == [[8, 1, 1], [8, 1, 1], [2, 4, 1], [2, 2, 2], [8, 1, 1]]


def test_sizes_that_do_not_fit(eight):
    assert eight["errors"][0] == "config.mesh must fit 8 devices, got data 3, fsdp 1, tensor 1"
    assert all("must fit 8 devices" in message for message in eight["errors"]), eight["errors"]


def test_batches_are_split_evenly(eight):
    fits, *unfit, fits_too = eight["batches"]
    assert fits == fits_too == "fits"
    assert len(unfit) == 2
    for message in unfit:
        assert message.startswith("config.batch_size must be a multiple of 8 ")


def test_the_largest_divisible_axis_of_big_arrays_is_split(eight):
    assert eight["places"] == {
        "square": ["fsdp"],
        "last_is_largest": [None, "fsdp"],
        "largest_does_not_divide": [None, "fsdp"],
        "none_divides": [],
        "kernel": [None, None, None, "fsdp"],
        "small": [],
        "scalar": [],
        "long": ["fsdp"],
    }
    assert eight["places_tensor"] == {
        "square": ["fsdp", "tensor"],
        "kernel": [None, None, "fsdp", "tensor"],
        "odd_output": ["fsdp"],
        "odd_input": [None, "tensor"],
        "long": ["tensor"],
        "small": [],
    }
    assert eight["places_data"] == {"square": []}
    assert eight["places_both"] == {"odd": ["fsdp"]}


def test_one_process_has_all_rows(eight):
    assert eight["rows"] == list(range(12))
    assert eight["replicated"] == [True, 8, [0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize(("name", "ways"), [("data", 1), ("fsdp", 8), ("both", 4), ("tensor", 4)])
def test_training_is_the_same_on_every_mesh(eight, name, ways):
    found = eight[name]
    assert found["start"] == 0
    assert found["losses"] == pytest.approx(eight["one"]["losses"], rel=1e-5)
    assert found["losses"][1] != found["losses"][0]
    assert 0 <= found["end"] < 1e-5
    # Weights, their moments and their average are split, and stay so.
    assert found["shards"] == [[8, 2**18 // ways]] * 3 and found["kept"]
    assert eight["one"]["shards"] == [[1, 2**18]] * 3


def test_results_are_fetched_one_behind():
    """The next one is on its way, and no more than that."""
    steps = []

    def results():
        for number in range(3):
            steps.append(f"begin {number}")
            yield {"number": jnp.int32(number), "rows": np.arange(number)}

    for result in mesh.fetch_behind(results()):
        assert all(isinstance(value, np.ndarray) for value in result.values())
        steps.append(f"use {int(result['number'])}")
    assert steps == ["begin 0", "begin 1", "use 0", "begin 2", "use 1", "use 2"]
    assert list(mesh.fetch_behind([])) == []
