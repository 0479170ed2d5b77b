"""Programs that need several devices: each runs in a process of its own."""

import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def splits(devices):
    """Every mesh (data, fsdp, tensor) of so many devices."""
    sizes = [size for size in (1, 2, 4, 8) if devices % size == 0]
    found = itertools.product(sizes, repeat=3)
    return [list(split) for split in found if math.prod(split) == devices]


def run_on_eight(module, *arguments):
    """The JSON that `python -m module` prints last, on eight CPU devices, warnings as errors."""
    return run_on(8, module, *arguments)


def run_on(devices, module, *arguments):
    """The same on as many."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", module, *arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result.pop("devices") == devices
    return result
