"""Training on a disk that fills up: it ends at once with one line, and goes on when there is room.

So does generation, see tests/imagen_ft/test_generate.py.
"""

import errno

import numpy as np
import pytest

from launch.errors import users_error
from launch.runtime.checkpoints import sealed_steps
from tests.support import toy
from tests.support.slow import first_fast
from tests.support.small_disk import small_disk

CONFIG = toy.changed(
    total_steps=40, log_every=1, best=dict(metric="distance", mode="min"), evaluate_every=2
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return toy.train(tmp_path_factory.mktemp("whole"), CONFIG)


@pytest.mark.parametrize("size", first_fast(["32k", "8k", "16k", "64k", "120k", "200k"]))
def test_training_on_a_full_disk(whole, size, tmp_path, capfd):
    disk = tmp_path / "disk"
    with small_disk(disk, size) as resize:
        with pytest.raises(OSError) as full:
            toy.train(disk / "run", CONFIG)
        assert full.value.errno == errno.ENOSPC
        reason = users_error(full.value)
        assert str(disk) in reason and f"No space left on device (the disk at {disk})" in reason
        lines = capfd.readouterr().err.splitlines()
        assert all(line.startswith("toy: ") for line in lines), lines
        assert not list(disk.rglob(".*.tmp")), "half a file is left"
        resize("20m")
        state = toy.train(disk / "run", CONFIG)
    for ours, theirs in zip(toy.leaves(state), toy.leaves(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_disk_that_fills_up_while_a_checkpoint_is_written(tmp_path, capfd, monkeypatch):
    """There was room when it began."""
    monkeypatch.setattr(sealed_steps, "check_space", lambda *_: None)
    disk = tmp_path / "disk"
    with small_disk(disk, "24k"):
        with pytest.raises(OSError) as full:
            toy.train(disk / "run", CONFIG)
        assert full.value.errno == errno.ENOSPC and str(disk) in users_error(full.value)
        lines = capfd.readouterr().err.splitlines()
        assert all(line.startswith("toy: ") for line in lines), lines
