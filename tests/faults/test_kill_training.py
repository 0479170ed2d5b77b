"""kill -9 while a stage is trained, then the same command: bit for bit the uninterrupted run."""

import signal
import time

import jax
import numpy as np
import pytest

from imagen_ft.finetune import Training
from launch.runtime.checkpoint import Checkpoints
from launch.runtime.metrics import read_metrics
from tests.imagen_ft import tiny_training
from tests.imagen_ft.tiny_training import finish, numbers, start


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    finish(start(workdir))
    return workdir


def restored(workdir):
    training = Training.of(tiny_training.get_config())
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        training.abstract,
    )
    checkpoints = Checkpoints(workdir / "checkpoints")
    try:
        return [np.asarray(leaf) for leaf in jax.tree.leaves(checkpoints.restore(abstract))]
    finally:
        checkpoints.close()


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_random_moments(whole, tmp_path, kills):
    rng = np.random.default_rng(0)
    for at in np.sort(rng.uniform(0, 19, kills)):
        process = start(tmp_path)
        while len(read_metrics(tmp_path)) < at and process.poll() is None:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finish(start(tmp_path))
    assert numbers(tmp_path) == numbers(whole)
    for ours, theirs in zip(restored(tmp_path), restored(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)
