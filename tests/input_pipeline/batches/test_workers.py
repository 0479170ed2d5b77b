"""Batches read by processes: the same ones, and nothing is left of the processes."""

import functools
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from input_pipeline.augment.crop import random_shift
from input_pipeline.batches import loader
from input_pipeline.batches import workers as pool
from input_pipeline.batches.mixture import Union
from input_pipeline.source import ArraySource
from input_pipeline.sources.digits import digits
from launch.errors import InputError
from tests.support import ROOT

# A slow consumer of two workers, which tells how far it is.
SLOW = """
import time
from input_pipeline.batches import loader
from input_pipeline.sources.digits import digits
if __name__ == "__main__":
    for batch in loader.iterate(loader.batches(digits("pool"), 8, 0), 0, 10**6, workers=2):
        print(batch["label"][0], flush=True)
        time.sleep(0.1)
"""


def mixed():
    pool = digits("pool")
    synthetic = ArraySource(255 - pool.images, pool.labels, pool.class_names, domain=1)
    return Union([pool, synthetic])


def batches(transform=None):
    shift = functools.partial(random_shift, max_shift=1)
    return loader.batches(mixed(), 12, 0, transform=transform, augment=shift, synthetic_weight=0.25)


def assert_same(dataset, start, stop, workers):
    run = list(loader.iterate(dataset, start, stop, workers))
    assert len(run) == stop - start
    for k, batch in enumerate(run, start=start):
        expected = dataset[k]
        assert batch.keys() == expected.keys()
        for name, values in batch.items():
            np.testing.assert_array_equal(values, expected[name])
            assert values.dtype == expected[name].dtype


@pytest.mark.parametrize(
    ("asked", "readers", "room", "count"),
    [
        (0, 1, 0, 0),
        (5, 1, 0, 5),
        (5, 2, 0, 3),
        (-1, 1, 10**6, 7),
        (-1, 3, 10**6, 3),
        (-1, 1, 25, 3),
        (-1, 3, 25, 1),
        (-1, 1, 7, 0),
    ],
)
def test_workers_by_cpus_and_shared_memory(
    tmp_path, monkeypatch, capsys, asked, readers, room, count
):
    monkeypatch.setattr(pool, "usable_cpus", lambda: 8)
    monkeypatch.setattr(pool, "_SHARED_MEMORY", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: mock.Mock(free=room * 10))
    # A worker holds 4 batches of 10 bytes, and half of what is free is left.
    assert pool.count_workers(asked, 10, readers) == count
    assert ("make it larger" in capsys.readouterr().err) == (asked < 0 and room < 10**6)
    monkeypatch.setattr(pool, "_SHARED_MEMORY", str(tmp_path / "none"))
    assert asked >= 0 or pool.count_workers(asked, 10, readers) == -(-7 // readers)


@pytest.mark.parametrize("workers", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3))])
def test_workers_read_the_same_batches_in_the_same_order(workers):
    # Neither the first batch nor how many there are is a multiple of the workers.
    assert_same(batches(), 5, 16, workers)
    assert not multiprocessing.active_children()


def enlarged(example):
    return {**example, "image": np.tile(example["image"], (40, 40, 1))}


@pytest.mark.slow
def test_large_batches_come_in_shared_memory():
    dataset = batches(enlarged)
    assert dataset[0]["image"].nbytes > 2**20
    assert_same(dataset, 0, 10, workers=2)


def damaged(example):
    if example["label"] == 3:
        raise InputError("x.tfrecord: record 3: damaged; write it again")
    return example


def killed(example):
    if example["label"] == 3 and multiprocessing.parent_process():
        os.kill(os.getpid(), signal.SIGKILL)
    return example


@pytest.mark.slow
@pytest.mark.parametrize(
    ("transform", "said"),
    [
        (damaged, "x.tfrecord: record 3: damaged; write it again"),
        (
            killed,
            "loader_workers=1: one of them was killed (exit code -9), perhaps for lack of memory "
            "or shared memory (/dev/shm); make room, use fewer workers, or 0 for threads",
        ),
    ],
)
def test_an_error_in_a_worker_is_told_in_one_line(transform, said):
    with pytest.raises(InputError) as error:
        list(loader.iterate(batches(transform), 0, 100, workers=1))
    assert str(error.value) == said
    assert not multiprocessing.active_children()


def status(pid):
    """The letter of its state, and its parent's number; of a process that is gone, none."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return "Z", 0
    return state, int(parent)


def workers_of(pid):
    found = [int(path.name) for path in Path("/proc").glob("[0-9]*") if status(path.name)[1] == pid]
    return [
        child for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def is_running(pid):
    return status(pid)[0] != "Z"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks Linux about processes")
def test_workers_outlive_notices_but_not_their_parent(tmp_path):
    program = tmp_path / "slow.py"
    program.write_text(SLOW)
    parent = subprocess.Popen(
        [sys.executable, program],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    try:
        for _ in range(3):
            assert parent.stdout.readline()
        workers = workers_of(parent.pid)
        assert len(workers) == 2
        for number in (signal.SIGTERM, signal.SIGINT):
            for worker in workers:
                os.kill(worker, number)
        for _ in range(20):  # more than was read ahead
            assert parent.stdout.readline()
    finally:
        parent.kill()
        parent.communicate()
    deadline = time.monotonic() + 20
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, workers))


@pytest.mark.slow
def test_tasks_can_be_imported_by_workers_without_a_device():
    """Who has an accelerator is the parent; a worker imports its module, no more."""
    code = "import classifiers.train, imagen_ft.finetune"
    env = os.environ | {"JAX_PLATFORMS": "none_such"}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, check=True)
