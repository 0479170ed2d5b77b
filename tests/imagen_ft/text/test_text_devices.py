"""T5 over eight devices, in a process of their own."""

import pytest

from tests.support.devices import run_on_eight


@pytest.fixture(scope="module")
def eight():
    return run_on_eight("tests.imagen_ft.text.text_devices")


@pytest.mark.slow
@pytest.mark.parametrize("axes", ["data 2 fsdp 4", "fsdp 8", "data 8"])
def test_states_are_those_of_one_device(eight, axes):
    assert eight[f"float32 {axes}"][0] <= 1e-5
    assert eight[f"bfloat16 {axes}"][0] <= 1e-2


@pytest.mark.slow
def test_what_a_device_holds(eight):
    """Of the parameters its part over fsdp, of eight prompts one."""
    whole = 512 * 512
    held = {name: found[1] for name, found in eight.items() if name.startswith("float32")}
    assert held == {
        "float32 data 2 fsdp 4": [whole // 4, 1],
        "float32 fsdp 8": [whole // 8, 1],
        "float32 data 8": [whole, 1],
    }


@pytest.mark.slow
def test_batches_fit_the_devices(eight):
    """Three prompts a batch become eight, one a device; the second one is filled up."""
    assert all(sizes == [8, 3] for _, _, sizes in eight.values())
