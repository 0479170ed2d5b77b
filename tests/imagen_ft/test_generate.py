import concurrent.futures
import json
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from imagen_ft.cascade.provenance import OUTSIDE_PROVENANCE, without
from imagen_ft.generation.worker import complete
from input_pipeline import sources
from input_pipeline.batches import loader
from input_pipeline.synthetic.card import make_card
from input_pipeline.synthetic.source import SyntheticSource
from input_pipeline.synthetic.verify import verify
from input_pipeline.synthetic.writer import SyntheticWriter
from launch import files
from launch.errors import InputError
from tests.imagen_ft import trivial_generate
from tests.imagen_ft.trivial_generate import images_of
from tests.input_pipeline.synthetic.tiny_set import contents as all_contents
from tests.input_pipeline.synthetic.tiny_set import flip_byte
from tests.support import ROOT
from tests.support.damages import damages

NAMES, COUNTS = ("ant", "bee", "cat"), {"ant": 30, "bee": 0, "cat": 45}


def contents(folder):
    return {name: data for name, data in all_contents(folder).items() if ".lock" not in name}


@pytest.fixture
def command(tmp_path, capsys):
    """Runs the command in this process; returns its exit code and what it printed."""
    counts = tmp_path / "counts.json"
    counts.write_text(json.dumps(COUNTS))

    def run(folder, *flags, names=NAMES, **options):
        with pytest.raises(SystemExit) as ended:
            trivial_generate.main(str(counts), names, f"--workdir={folder}", *flags, **options)
        return ended.value.code or 0, capsys.readouterr()

    return run


@pytest.fixture
def whole(command, tmp_path):
    assert command(tmp_path / "whole")[0] == 0
    return tmp_path / "whole"


def test_as_many_images_as_the_real_set_has(whole):
    source = SyntheticSource(whole)
    assert np.bincount(source.labels).tolist() == [60, 0, 90]
    for index in (0, 29, 30, 149):
        np.testing.assert_array_equal(source[index]["image"], images_of(0, [index], 8)[0])
    assert verify(whole).ok


def test_card_and_manifest(whole):
    card = (whole / "README.md").read_text()
    for said in ("150 synthetic images of 2 classes", "8x8 pixels, png", "`0000", "ant, cat", "75"):
        assert said in card
    assert (whole / "samples.png").stat().st_size > 1000
    manifest = files.read_sealed(whole / "manifest.json")
    assert manifest["class_counts"] == [60, 0, 90]
    assert manifest["provenance"]["weights"] == ["0" * 64]
    assert "batch_size" not in manifest["provenance"]["config"]


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_same_set_whoever_makes_it(command, whole, tmp_path, workers):
    for worker in reversed(range(workers)):
        flags = [f"--worker={worker}", f"--num_workers={workers}"]
        code, said = command(tmp_path / "again", *flags)
        assert code == 0
        done = "complete, 150 images" in said.out
        assert done == (worker == 0), said.out
        assert done or "shards of other workers are not written yet" in said.out
    assert contents(tmp_path / "again") == contents(whole)


def test_a_finished_set_is_left_alone(command, whole):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*.*") if path.name[0] != "."}
    code, said = command(whole)
    assert code == 0 and "a second" not in said.out
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_what_is_gone_of_a_finished_set_is_made_again(command, whole, tmp_path):
    sound = contents(whole)
    (whole / "dataset_info.json").unlink()
    (whole / "README.md").write_text("")
    code, said = command(whole)
    assert code == 0 and "README.md, dataset_info.json missing or damaged; writing" in said.err
    assert contents(whole) == sound
    flip_byte(sorted(whole.glob("*.tfrecord-*"))[3], 90)
    code, said = command(whole)
    assert code == 0 and "shards 3 are damaged; making them again" in said.err
    assert contents(whole) == sound
    assert command(whole)[1].err.count("damaged") == 0


def test_another_config_is_refused(command, whole):
    for change, named in (
        (dict(copies=3), " copies = 2 (now 3)"),
        (dict(per_shard=21), "images_per_shard = 20 (now 21)"),
        (dict(stored=4), "image_shape = [8, 8, 3] (now [4, 4, 3])"),
        (dict(batch_size=31), "provenance.rounding.images_per_device = [32] (now [31])"),
    ):
        code, said = command(whole, **change)
        assert code == 2 and named in said.err and said.err.count("\n") == 1, said.err


def test_verify_and_repair(command, whole):
    before = contents(whole)
    assert command(whole, "--verify")[0] == 0
    shards = sorted(whole.glob("*.tfrecord-*"))
    flip_byte(shards[2], 70)
    shards[4].unlink()
    (whole / "index" / "00001-of-00008.json").write_text("{}")
    (whole / "features.json").unlink()
    code, said = command(whole, "--verify")
    assert code == 2 and "--repair" in said.err
    report = json.loads(said.out)
    assert report["shards_to_repair"] == 3 and report["faults"]["damaged"]["count"] >= 4
    code, said = command(whole, "--repair")
    assert code == 0 and "60 images in" in said.out, said.out + said.err
    assert contents(whole) == before


def test_repair_leaves_files_of_another_set_to_people(command, whole):
    (whole / "trivial-train.tfrecord-00000-of-00001").write_bytes(b"")
    code, said = command(whole, "--repair")
    assert code == 2 and "belongs to another set; remove such files" in said.err


def test_images_are_stored_smaller(command, tmp_path):
    assert command(tmp_path / "small", stored=4, size=8)[0] == 0
    image = SyntheticSource(tmp_path / "small")[3]["image"]
    full = images_of(0, [3], 8)[0].astype(float)
    means = full.reshape(4, 2, 4, 2, 3).mean((1, 3))
    assert np.abs(image - means).max() <= 0.5
    for stored in (16, -1):
        code, said = command(tmp_path / "large", stored=stored, size=8)
        assert code == 2 and f"or 0 for that size, got {stored}" in said.err
        assert not (tmp_path / "large").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--worker=1"], "--worker must be from 0 to 0, got 1"),
        (["--worker=-1", "--num_workers=2"], "--worker must be from 0 to 1, got -1"),
        (["--repair", "--num_workers=2"], "--repair needs one worker"),
        (["--verify"], "is not a synthetic set"),
        (["--repair"], "is not a synthetic set"),
    ],
)
def test_wrong_flags(command, tmp_path, flags, message):
    code, said = command(tmp_path / "set", *flags)
    assert code == 2 and message in said.err
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"ant": 1, "bee": 2}, "class 2 must be left out, as in"),
        ({"ant": 1, "bee": 2, "dog": 3}, "class 2 must be 'dog', as in"),
        (
            {"ant": 1, "bee": 2, "cat": -3},
            "the count of 'cat' must be a whole number of at least 0, got -3",
        ),
        (
            {"ant": 1, "bee": 2, "cat": 0.5},
            "the count of 'cat' must be a whole number of at least 0, got 0.5",
        ),
    ],
)
def test_wrong_counts(command, tmp_path, counts, message):
    (tmp_path / "counts.json").write_text(json.dumps(counts))
    code, said = command(tmp_path / "set")
    assert code == 2 and message in said.err and said.err.count("\n") == 1, said.err


def start(folder, counts, *flags, seconds=0.05, copies=2):
    options = dict(counts=str(counts), names=NAMES, seconds=seconds, copies=copies)
    command = [sys.executable, "-m", "tests.imagen_ft.trivial_generate", json.dumps(options)]
    with open(folder.parent / f"{folder.name}.log", "a") as log:
        return subprocess.Popen(
            [*command, f"--workdir={folder}", *flags], cwd=ROOT, stdout=log, stderr=log
        )


def kill_at_random(folder, counts, workers, kills, rng, copies):
    """Starts workers again and again, and kills one after a random part of a second of work.

    Returns:
        How many of the kills met a worker at work.
    """
    flags = [[f"--worker={i}", f"--num_workers={workers}"] for i in range(workers)]
    begin = lambda i: start(folder, counts, *flags[i], copies=copies)  # noqa: E731
    running, met = [begin(i) for i in range(workers)], 0
    for _ in range(kills):
        victim = int(rng.integers(workers))
        before = set(folder.glob("**/*"))
        while set(folder.glob("**/*")) == before and running[victim].poll() is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.3))
        met += running[victim].poll() is None
        running[victim].send_signal(signal.SIGKILL)
        running[victim].wait()
        running[victim] = begin(victim)
    for process in running:
        assert process.wait(timeout=120) == 0, folder.with_suffix(".log").read_text()
    return met


@pytest.mark.parametrize(
    ("workers", "kills"),
    [
        (1, 2),
        pytest.param(1, 20, marks=pytest.mark.slow),
        pytest.param(4, 20, marks=pytest.mark.slow),
    ],
)
def test_killed_and_started_again(command, tmp_path, workers, kills):
    folder, counts, copies = tmp_path / "killed", tmp_path / "counts.json", 2 * kills
    rng = np.random.default_rng(workers)
    assert kill_at_random(folder, counts, workers, kills, rng, copies) >= kills / 2
    assert command(tmp_path / "whole", copies=copies)[0] == 0
    assert contents(folder) == contents(tmp_path / "whole")


def test_one_worker_of_a_kind(command, tmp_path):
    folder, counts = tmp_path / "set", tmp_path / "counts.json"
    running = start(folder, counts, "--worker=1", "--num_workers=3", seconds=10.0)
    try:
        while not (folder / "provenance.json").exists():
            assert running.poll() is None, (tmp_path / "set.log").read_text()
            time.sleep(0.02)
        code, said = command(folder, "--worker=1", "--num_workers=3")
        assert code == 2 and "worker 1 is already running" in said.err
        code, said = command(folder, "--worker=1", "--num_workers=2")
        assert code == 2 and "--num_workers must be 3" in said.err
        code, said = command(folder, "--repair")
        assert code == 2 and "in use by another process" in said.err
    finally:
        running.kill()
        running.wait()


def test_a_full_disk(command, tmp_path):
    """A file system of 64 kB, where mounting is allowed; elsewhere a limit on the size of files."""
    disk, counts = tmp_path / "disk", tmp_path / "counts.json"
    disk.mkdir()
    options = ["-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(["mount", *options]).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        process = start(disk / "set", counts, seconds=0.0)
        assert process.wait() == 2
        said = (disk / "set.log").read_text()
        assert "No space left on device" in said and "Traceback" not in said
        assert not list((disk / "set").glob(".*.tmp")), "a half shard is left"
        subprocess.run(["mount", "-o", "remount,size=10m", str(disk)], check=True)
        assert start(disk / "set", counts, seconds=0.0).wait() == 0
        assert command(tmp_path / "whole")[0] == 0
        assert contents(disk / "set") == contents(tmp_path / "whole")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_source_is_picklable(whole):
    source = pickle.loads(pickle.dumps(SyntheticSource(whole)))
    np.testing.assert_array_equal(source[7]["image"], images_of(0, [7], 8)[0])


def test_a_counts_file_may_move(command, whole, tmp_path):
    config = files.read_sealed(whole / "provenance.json")["provenance"]["config"]
    assert "seed" in config and not set(config) & set(OUTSIDE_PROVENANCE)
    nested = {"stages": {"a": {"run": "x", "unet": {"remat": True, "width": 3}}}, "mesh": {}}
    assert without(nested, OUTSIDE_PROVENANCE) == {"stages": {"a": {"unet": {"width": 3}}}}


def test_other_peoples_folders_are_left_alone(command, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    code, said = command(tmp_path / "mine")
    assert code == 2 and "has README.md" in said.err
    assert (tmp_path / "mine" / "README.md").read_text() == "mine"


def test_workers_that_end_together(whole, monkeypatch):
    """All find that nothing is missing: one completes the set, and none of them stumbles."""
    before = contents(whole)
    config = files.read_sealed(whole / "provenance.json")
    fields = {key: config[key] for key in config if key != "format"}
    writers = [SyntheticWriter(whole, **fields) for _ in range(8)]
    cards = []
    counted = lambda *args: cards.append(1) or make_card(*args)  # noqa: E731
    monkeypatch.setattr("imagen_ft.generation.worker.make_card", counted)
    monkeypatch.setattr("imagen_ft.generation.worker.code_version", lambda: "trivial")
    for number in range(1, 11):
        (whole / "manifest.json").unlink()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda writer: complete(writer, []), writers))
        assert len(cards) == number
    assert contents(whole) == before


def test_a_shard_of_another_worker_that_went_away(command, whole):
    (whole / "manifest.json").unlink()
    sorted(whole.glob("*.tfrecord-*"))[4].unlink()
    code, said = command(whole, "--worker=0", "--num_workers=2")
    assert code == 0 and "60 images in" not in said.out
    assert "1 shard of other workers is not written yet" in said.out
    assert command(whole, "--worker=1", "--num_workers=2")[0] == 0
    assert verify(whole).ok


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [15, pytest.param(200, marks=pytest.mark.slow)])
def test_random_damage_is_found_and_mended(command, whole, rounds):
    before, rng = contents(whole), np.random.default_rng(rounds)
    for _ in range(rounds):
        what = [damages(whole, rng) for _ in range(rng.integers(1, 4))]
        code, said = command(whole, "--verify")
        assert code == 2 and said.err.count("error: ") == 1, what
        code, said = command(whole, "--repair")
        assert code == 0, (what, said.err)
        assert contents(whole) == before, what


def test_training_over_a_damaged_set(whole):
    flip_byte(sorted(whole.glob("*.tfrecord-*"))[2], 70)
    spec = dict(name="synthetic", path=str(whole))
    batches = lambda spec: loader.batches(sources.load(spec), 50, seed=0)  # noqa: E731
    with pytest.raises(InputError, match=r"tfrecord-00002-of-00008: record 0 at byte 0: damaged"):
        list(loader.iterate(batches(spec), 0, 3))
    source = sources.load({**spec, "on_damage": "skip"})
    list(loader.iterate(loader.batches(source, 50, seed=0), 0, 3))
    assert source.damaged == 1


@pytest.mark.slow
def test_a_set_in_a_store(command, whole, store, bucket):
    for worker in (1, 0):
        code, said = command(f"{bucket}/set", f"--worker={worker}", "--num_workers=2")
        assert code == 0, said.err
    keys = store.names(bucket.parts[-1])
    made = {key.removeprefix("set/"): store.objects[bucket.parts[-1], key][0] for key in keys}
    assert made == contents(whole)
    assert command(f"{bucket}/set", "--verify")[0] == 0
    image = SyntheticSource(f"{bucket}/set")[3]["image"]
    np.testing.assert_array_equal(image, images_of(0, [3], 8)[0])
    (bucket / "set" / next(name for name in made if "tfrecord-00002-of-00008" in name)).unlink()
    assert command(f"{bucket}/set", "--verify")[0] == 2
    assert command(f"{bucket}/set", "--repair")[0] == 0
    assert command(f"{bucket}/set", "--verify")[0] == 0
