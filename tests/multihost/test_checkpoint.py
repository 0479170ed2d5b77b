"""Checkpoints of a job of two processes, restored by it and by one process with one device."""

import shutil

import pytest

from launch.runtime.checkpoints import seals
from tests.multihost.processes import run_processes
from tests.support.checkpoint_states import damage, files, newest

MODULE = "tests.multihost.checkpoint_processes"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """What two processes of two devices each save: the folder, and what they say of it."""
    workdir = tmp_path_factory.mktemp("saved")
    found = run_processes(MODULE, "save", str(workdir))
    assert found[0] == found[1] and found[0]["devices"] == 4 and found[0]["split"] > 8
    return workdir, found[0]["digests"]


@pytest.mark.slow
def test_each_process_has_hashed_its_share(saved):
    workdir, digests = saved
    for folder in (workdir / "checkpoints" / "2", workdir / "checkpoints" / "3"):
        parts = sorted(path.name for path in folder.glob("digests_*"))
        assert parts == ["digests_0_of_2.json", "digests_1_of_2.json"]
        assert seals.find_fault(folder) is None
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["2", "3"]
    assert [path.name for path in (workdir / "best").iterdir()] == ["2"]
    assert newest(workdir).digest() == digests["main"]
    assert newest(workdir).digest("slow") == digests["slow"] != digests["main"]


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(2, 2), (1, 1)])
def test_other_processes_restore_the_same_bits(saved, processes, devices):
    workdir, digests = saved
    job = dict(processes=processes, devices=devices)
    for found in run_processes(MODULE, "restore", str(workdir), **job):
        assert found["devices"] == processes * devices
        assert found["step"] == 3 and found["placed"]
        assert found["digests"] == digests
        best = newest(workdir, best=True).digest()
        assert found["loaded"] == {
            "main": digests["main"],
            "slow": digests["slow"],
            "main of the best": best,
        }
        assert best != digests["main"]


@pytest.mark.slow
def test_damage_that_one_process_finds_counts_for_all(saved, tmp_path):
    workdir = shutil.copytree(saved[0], tmp_path / "run")
    folder = workdir / "checkpoints" / "3"
    orbax = [path for path in files(folder) if not path.name.startswith("digests_")]
    orbax.sort(key=lambda path: str(path.relative_to(folder)))
    damage(orbax[1])  # the share of process 1
    assert seals.find_fault(folder, 0, 2) is None and seals.find_fault(folder, 1, 2)
    found = run_processes(MODULE, "restore", str(workdir))
    assert found[0] == found[1] and found[0]["step"] == 2
    assert (workdir / "damaged_checkpoint_3").is_dir() and not folder.exists()


@pytest.mark.slow
def test_a_failure_of_one_process_is_heard_by_all(saved, tmp_path):
    workdir = shutil.copytree(saved[0], tmp_path / "run")
    first, second = run_processes(MODULE, "fail", str(workdir))
    full = "cannot read or write at /disk: No space left on device (the disk at /)"
    assert second["error"] == full
    assert first["error"] == f"step 4 was not saved: process 1: {full}"
    assert first["latest"] == second["latest"] == 3
