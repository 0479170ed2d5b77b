"""T5 over eight devices, in a process of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def eight():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.imagen_ft.text_devices"],
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "8"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result.pop("devices") == 8
    return result


@pytest.mark.parametrize("axes", ["data 2 fsdp 4", "fsdp 8", "data 8"])
def test_states_are_those_of_one_device(eight, axes):
    assert eight[f"float32 {axes}"][0] <= 1e-5
    assert eight[f"bfloat16 {axes}"][0] <= 1e-2


def test_what_a_device_holds(eight):
    """Of the parameters its part over fsdp, of eight prompts one."""
    whole = 512 * 512
    held = {name: found[1] for name, found in eight.items() if name.startswith("float32")}
    assert held == {
        "float32 data 2 fsdp 4": [whole // 4, 1],
        "float32 fsdp 8": [whole // 8, 1],
        "float32 data 8": [whole, 1],
    }


def test_batches_fit_the_devices(eight):
    """Three prompts a batch become eight, one a device; the second one is filled up."""
    assert all(sizes == [8, 3] for _, _, sizes in eight.values())
