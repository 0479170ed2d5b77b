"""What processes tell each other."""

import numpy as np
import pytest

from tests.multihost.processes import run_processes
from tests.multihost.text_processes import ROWS


def test_processes_hear_of_each_other():
    first, second = run_processes("tests.multihost.text_processes", devices=1)
    assert (first.pop("calls"), second.pop("calls")) == (1, 0)
    assert first == second
    count, mean, covariance = first.pop("moments")
    assert count == len(ROWS)
    assert mean == pytest.approx(ROWS.mean(axis=0), rel=1e-15)
    np.testing.assert_allclose(covariance, np.cov(ROWS.T), rtol=1e-6)
    assert first == {
        "texts": ["ä" * 70_000, ""],
        "empty": ["", ""],
        "first": [0, ""],
        "decided": {"of": 0},
        "wrong": "wörong " * 300,
        "full": "cannot read or write at /disk: No space left on device (the disk at /)",
        "well": "",
    }
