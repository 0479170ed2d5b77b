"""Weights straight to eight devices, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_device_gets_its_own_part(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.imagen_ft.weights_devices", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "8"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result.pop("devices") == 8
    for name, found in result.items():
        assert found["equal"] and found["placed"] and found["split"] > 8, name
        # From files no device reads more than its own; Orbax reads for itself.
        assert found["read in eighths"] == (found["split"] if "pipeline" in name else 0), name
