"""A run directory as an object."""

import jax
import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

from launch.errors import InputError
from launch.runtime.checkpoints.checkpoint import save_inference
from launch.runtime.run import CLASSIFIER, IMPORT, STAGE, Run
from launch.runtime.run_record import seed_name
from launch.runtime.workdir import claim_workdir
from tests.support.checkpoint_states import SEAL

VARIABLES = {"params": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}


@pytest.fixture
def path(tmp_path):
    return epath.Path(tmp_path)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        (dict(stage=dict(size=4)), STAGE),
        (dict(model=dict(name="vit"), seeds=2), CLASSIFIER),
        (dict(imported=dict(variant="fp16")), IMPORT),
        (dict(model=dict(name="vit")), IMPORT),
    ],
)
def test_kinds(path, fields, kind):
    claim_workdir(path, ConfigDict(dict(fields, total_steps=3)), {"text": "abc"})
    run = Run.open(path)
    assert run.kind == kind and run.inputs == {"text": "abc"} and run.step is None


def test_checkpoints_of_a_seed(path):
    run_name = claim_workdir(path, ConfigDict(dict(model=dict(), seeds=2, total_steps=3)))
    save_inference(path / "seed_1", seed_name(run_name, "seed_1"), VARIABLES, step=3)
    run = Run.open(path)
    first, second = run.seeds
    assert run.seeds[1] is second
    assert (first.step, second.step) == (None, 3)
    assert second.path == path and second.config is run.config
    second.check_finished()
    found = second.variables(second.shapes())
    jax.tree.map(np.testing.assert_array_equal, found, VARIABLES)
    assert len(second.digest()) == 64
    with pytest.raises(InputError, match="has no checkpoint"):
        first.check_finished()


def test_what_is_read_once(path):
    run_name = claim_workdir(path, ConfigDict(dict(total_steps=3)), {"text": "abc"})
    save_inference(path, run_name, VARIABLES, step=3)
    run = Run.open(path)
    digest, inputs = run.digest(), run.inputs
    for name in ("config.json", "inputs.json", f"checkpoints/3/{SEAL}"):
        (path / name).unlink()
    run.check_finished()
    assert run.digest() == digest and run.inputs == inputs
    with pytest.raises(InputError, match="is not sealed"):
        run.variables(VARIABLES)


def test_an_unfinished_run_gives_no_variables(path):
    run_name = claim_workdir(path, ConfigDict(dict(total_steps=9)))
    save_inference(path, run_name, VARIABLES, step=3)
    run = Run.open(path)
    with pytest.raises(InputError, match="is at step 3 of 9"):
        run.variables(run.shapes())


def test_no_run(path):
    with pytest.raises(InputError, match=r"none is not a run \(it has no config.json\)"):
        Run.open(path / "none")
