"""One set by one device, by four of one process, by two processes with two each, by workers."""

import json

import numpy as np
import pytest

from input_pipeline.synthetic.source import SyntheticSource
from input_pipeline.synthetic.verify import verify
from tests.input_pipeline.synthetic.tiny_set import contents
from tests.multihost.processes import run_processes, start_processes

MODULE = "tests.imagen_ft.generate_devices"
COUNTS = {"ab": 7, "c": 4, "de": 12}


def make(tmp_path, name, mesh, processes=1, devices=1, workers=1):
    counts = tmp_path / "counts.json"
    counts.write_text(json.dumps(COUNTS))
    for worker in range(workers):
        flags = (f"--worker={worker}", f"--num_workers={workers}")
        arguments = str(counts), str(tmp_path / name), json.dumps(mesh), *flags
        run_processes(MODULE, *arguments, processes=processes, devices=devices)
    assert verify(tmp_path / name).ok
    source = SyntheticSource(tmp_path / name)
    return np.stack([source[i]["image"] for i in range(len(source))]).astype(int)


MESHES = {
    "job": ({"data": -1}, 2, 2, 1),
    "four": ({"data": 2, "fsdp": 2}, 1, 4, 1),
    "workers that are jobs": ({"data": -1}, 2, 1, 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_a_set_is_the_same_on_any_devices(tmp_path, name):
    alone = make(tmp_path, "alone", {"data": -1})
    assert alone.shape == (23, 8, 8, 1) and alone.std(axis=0).mean() > 10
    found = make(tmp_path, name, *MESHES[name])
    # Sums are rounded as the devices' parts of a batch have it.
    assert np.abs(found - alone).max() <= 1
    assert (found == alone).mean() > 0.99


@pytest.mark.slow
def test_devices_that_draw_as_many_each_draw_the_same(tmp_path):
    found = [make(tmp_path, name, *MESHES[name]) for name in ("job", "workers that are jobs")]
    sets = [contents(tmp_path / name) for name in ("job", "workers that are jobs")]
    shards = [{name: data for name, data in files.items() if "tfrecord" in name} for files in sets]
    assert len(found[0]) == 23 and len(shards[0]) == 4 and shards[0] == shards[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("full", "cannot read or write at the disk of process 1: No space left on device"),
        ("apart", "must be the same folder on all hosts"),
    ],
)
def test_what_one_process_cannot_do_ends_all_of_them(tmp_path, kind, said):
    (tmp_path / "counts.json").write_text(json.dumps(COUNTS))
    arguments = kind, str(tmp_path / "counts.json"), str(tmp_path / "set"), '{"data": -1}'
    with start_processes("tests.imagen_ft.generate_fails", *arguments, devices=1) as started:
        for process, log in started:
            assert process.wait(timeout=300) == 2, log.read_text()
            assert said in log.read_text() and "Traceback" not in log.read_text()
