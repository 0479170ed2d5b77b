"""A run with checkpoints, and a copy of it for whoever damages one."""

import shutil

import pytest

from tests.support.checkpoint_states import save


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with the checkpoints 2 and 3; 1 had to make room."""
    workdir = tmp_path_factory.mktemp("saved")
    save(workdir, 1, 2, 3)
    return workdir


@pytest.fixture
def run(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")
