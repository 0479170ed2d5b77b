"""Weights straight to eight devices, in a process of its own."""

import pytest

from tests.support.devices import run_on_eight


@pytest.mark.slow
def test_every_device_gets_its_own_part(tmp_path):
    result = run_on_eight("tests.imagen_ft.weights.weights_devices", str(tmp_path))
    for name, checks in result.items():
        assert checks["equal"] and checks["placed"] and checks["split"] > 8, name
        # From files no device reads more than its own; Orbax reads for itself.
        assert checks["read in eighths"] == (checks["split"] if "pipeline" in name else 0), name
