"""Damage to checkpoint files, bit by bit: all of it is found, and the checkpoint before is used."""

import contextlib
import random
import shutil

import jax
import pytest

from launch.runtime.checkpoints import seals
from launch.runtime.checkpoints.checkpoint import Checkpoints
from tests.support.checkpoint_states import (
    RUN_NAME,
    abstract,
    assert_same_bits,
    files,
    make_state,
    restore,
    save,
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with two checkpoints; the newer one's seal has two parts, as of two processes."""
    workdir = tmp_path_factory.mktemp("saved")
    save(workdir, 1, 2)
    folder = workdir / "checkpoints" / "2"
    facts = seals.read_facts(folder)
    seals.break_seal(folder)
    for index in range(2):
        seals.seal(folder, index, 2, facts)
    return workdir


@pytest.fixture
def run(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def kind(path):
    """Data files have random names."""
    parent = path.parent.name
    return path.name if parent not in ("d", "array_metadatas") else parent


def victims(folder, count, rng, usable=lambda path: True):
    """A file of each kind, then any."""
    paths = [path for path in files(folder) if usable(path)]
    kinds = {kind(path): path for path in rng.sample(paths, len(paths))}
    chosen = list(kinds.values()) + rng.choices(paths, k=count)
    return chosen[:count], set(kinds)


def flip(path, rng):
    data = bytearray(path.read_bytes())
    bit = rng.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def truncate(path, rng):
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def delete(path, rng):
    path.unlink()


KINDS = {
    "_CHECKPOINT_METADATA",
    "_METADATA",
    "_sharding",
    "array_metadatas",
    "commit_success.txt",
    "d",
    "digests_0_of_2.json",
    "digests_1_of_2.json",
    "manifest.ocdbt",
}


@pytest.mark.parametrize(
    ("harm", "count", "said"),
    [(flip, 100, "is damaged"), (truncate, 20, "is damaged"), (delete, 20, "is missing")],
    ids=["100 bit flips", "20 truncations", "20 deletions"],
)
def test_all_damage_is_found_and_the_file_named(run, harm, count, said):
    folder = run / "checkpoints" / "2"
    rng = random.Random(0)
    paths, kinds = victims(folder, count, rng, lambda path: path.stat().st_size > 0)
    assert kinds == KINDS and {kind(path) for path in paths} == KINDS
    assert seals.find_fault(folder) is None
    found = 0
    for path in paths:
        whole = path.read_bytes()
        harm(path, rng)
        fault = seals.find_fault(folder)
        found += fault is not None and path.name in fault and said in fault
        path.write_bytes(whole)
    assert found == count
    assert seals.find_fault(folder) is None


@pytest.mark.parametrize("harm", [flip, truncate, delete])
@pytest.mark.parametrize(
    "wanted", ["_CHECKPOINT_METADATA", "_METADATA", "d", "digests_1_of_2.json", "manifest.ocdbt"]
)
def test_the_run_goes_on_from_the_checkpoint_before(run, capsys, harm, wanted):
    paths = [path for path in files(run / "checkpoints" / "2") if kind(path) == wanted]
    path = max(paths, key=lambda path: path.stat().st_size)
    harm(path, random.Random(0))
    assert_same_bits(restore(run), make_state(1, keep_ema=True))
    err = capsys.readouterr().err
    assert path.name in err and "/checkpoints/2" in err
    # And comes to the same end.
    with contextlib.closing(Checkpoints(run / "checkpoints", RUN_NAME)) as checkpoints:
        state = checkpoints.restore(abstract(make_state(0, keep_ema=True)))
        checkpoints.save(make_state(int(state.step) + 1, keep_ema=True))
    assert_same_bits(restore(run), make_state(2, keep_ema=True))
    assert jax.tree.structure(restore(run)) == jax.tree.structure(state)
