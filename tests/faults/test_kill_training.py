"""kill -9 while something is trained, then the same command: bit for bit the uninterrupted run."""

import signal
import time

import jax
import numpy as np
import pytest
from etils import epath

from classifiers.training import vmap_seeds
from classifiers.training.training import Training as ClassifierTraining
from imagen_ft.training.training import Training
from launch.runtime.checkpoints.checkpoint import Checkpoints
from launch.runtime.run_record import read_record, seed_name
from tests.classifiers import tiny_training as tiny_classifier
from tests.imagen_ft import tiny_training
from tests.support.tiny_runs import CLASSIFIER, DIFFUSION, SEEDS, finish

RUNS = {"diffusion": DIFFUSION, "classifier": CLASSIFIER, "seeds": SEEDS}


def shapes(name):
    """Of the run's state."""
    if name == "diffusion":
        return Training.of(tiny_training.get_config()).abstract
    config = tiny_classifier.get_config("vmap_seeds" if name == "seeds" else "")
    training = ClassifierTraining.of(config, 10, (8, 8, 1))
    return (vmap_seeds.stacked(training) if name == "seeds" else training).abstract


def restored(name, workdir):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes(name)
    )
    folder, (_, _, run_name) = RUNS[name].folder, read_record(epath.Path(workdir))
    run_name = seed_name(run_name, folder) if folder else run_name
    checkpoints = Checkpoints(workdir / folder / "checkpoints", run_name)
    try:
        return [np.asarray(leaf) for leaf in jax.tree.leaves(checkpoints.restore(abstract))]
    finally:
        checkpoints.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody interrupts, by name; it is made once."""
    made = {}

    def make(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("whole")
            finish(RUNS[name].start(made[name]))
        return made[name]

    return make


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kills"), [("diffusion", 10), ("classifier", 10), ("seeds", 5)])
def test_killed_at_random_moments(whole, tmp_path, name, kills):
    rng, run = np.random.default_rng(0), RUNS[name]
    for at in np.sort(rng.uniform(0, 19, kills)):
        process = run.start(tmp_path)
        while len(run.lines(tmp_path)) < at and process.poll() is None:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finish(run.start(tmp_path))
    assert run.numbers(tmp_path) == run.numbers(whole(name))
    pairs = zip(restored(name, tmp_path), restored(name, whole(name)), strict=True)
    for ours, theirs in pairs:
        np.testing.assert_array_equal(ours, theirs)
