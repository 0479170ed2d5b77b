"""Runs at gs://: checkpoints, their record and their numbers."""

import contextlib
import dataclasses
import errno
import json
import os
import subprocess
import sys
import threading
import time

import jax.numpy as jnp
import pytest
from gcsfs.retry import HttpError
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from tensorboardX.proto.event_pb2 import Event

from input_pipeline.records.tfrecord import TFRecordFile
from launch.errors import InputError, Unreachable, store_failure
from launch.folders import entries, file_names
from launch.goodput import GOODPUT, read_attempts
from launch.runtime.checkpoints import sealed_steps, seals
from launch.runtime.checkpoints.checkpoint import Checkpoints
from launch.runtime.checkpoints.inference import latest_step
from launch.runtime.checkpoints.orbax_options import find_gap
from launch.runtime.training import mirror
from launch.runtime.training.event_file import EventFile
from launch.runtime.training.goodput import Ledger
from launch.runtime.training.metrics import MetricWriter, read_metrics
from launch.runtime.training.training_log import TrainingLog
from launch.runtime.workdir import claim_workdir
from tests.support import ROOT
from tests.support.checkpoint_states import (
    RUN_NAME,
    SEAL,
    abstract,
    assert_same_bits,
    make_state,
    newest,
    open_run,
    restore,
    save,
)
from tests.support.tiny_runs import DIFFUSION


def test_checkpoints(store, bucket):
    assert latest_step(bucket) is None and restore(bucket) is None
    save(bucket, 1, 2, 3)
    assert [path.name for path in entries(bucket / "checkpoints")] == ["2", "3"]
    assert_same_bits(restore(bucket), make_state(3, keep_ema=True))
    variables = open_run(bucket, 3).variables(abstract(make_state(0, True).ema["slow"]), "slow")
    assert_same_bits(variables, make_state(3, True).ema["slow"])
    # Of another process, which removes the oldest one that it sees.
    save(bucket, 4)
    assert [path.name for path in entries(bucket / "checkpoints")] == ["3", "4"]


def test_a_save_reads_nothing_back(store, bucket):
    """A machine that is taken away has 30 seconds for it; the store knows what it has received."""
    state = make_state(1, keep_ema=False)
    large = {**state.variables, "large": jnp.arange(2.0**20)}
    checkpoints, before = Checkpoints(bucket / "checkpoints", RUN_NAME), store.sent
    checkpoints.save(dataclasses.replace(state, variables=large))
    checkpoints.close()
    assert store.sent - before < 2**16
    seal = (bucket / "checkpoints" / "1" / SEAL).read_text()
    assert seal.count("bytes, crc32c") == len(file_names(bucket / "checkpoints" / "1")) - 1


def test_now_and_then_a_request_fails(store, bucket):
    store.fail_every = 10
    save(bucket, 1)
    assert_same_bits(restore(bucket), make_state(1, keep_ema=True))


def test_what_a_checkpoint_lacks(store, bucket):
    save(bucket, 1)
    folder = bucket / "checkpoints" / "1" / "training"
    names = [name for name in file_names(folder) if "/d/" in f"/{name}"]
    assert "of 99 arrays" in find_gap(folder, 99)
    for name in names:
        (folder / name).unlink()
    assert "cannot be read" in find_gap(folder, 99)
    (folder / "manifest.ocdbt").unlink()
    assert "is missing" in find_gap(folder, 99)


def test_a_file_that_goes_while_it_is_looked_for(store, bucket, monkeypatch):
    save(bucket, 1)
    monkeypatch.setattr(seals, "checksums", lambda folder: {})
    assert "cannot be read" in seals.find_fault(bucket / "checkpoints" / "1")


@pytest.mark.slow
@pytest.mark.parametrize("left", ["no seal", "a flipped bit"])
def test_a_damaged_checkpoint(store, bucket, left):
    save(bucket, 1, 2)
    folder, name = bucket / "checkpoints" / "2", bucket.parts[-1]
    if left == "no seal":
        (folder / SEAL).unlink()
    else:
        keys = [key for key in store.names(name, "checkpoints/2/") if not key.endswith(SEAL)]
        largest = max(keys, key=lambda key: len(store.objects[name, key][0]))
        data = bytearray(store.objects.pop((name, largest))[0])
        data[-1] ^= 1
        store.put(name, largest, data)
    assert_same_bits(restore(bucket), make_state(1, keep_ema=True))
    aside = [] if left == "no seal" else ["damaged_checkpoint_2"]
    assert [path.name for path in entries(bucket)] == ["checkpoints", *aside]
    assert newest(bucket).step == 1
    save(bucket, 2)
    assert newest(bucket).step == 2


def test_uploads_that_are_refused(store, bucket):
    checkpoints = Checkpoints(bucket / "checkpoints", RUN_NAME)
    store.refuse = "/d/"
    checkpoints.save(make_state(1, keep_ema=False))
    with pytest.raises(Exception) as error:
        checkpoints.finish()
    assert isinstance(store_failure(error.value), InputError)
    checkpoints.close()
    store.refuse = None
    assert latest_step(bucket) is None
    save(bucket, 1)
    assert newest(bucket).step == 1


def test_a_store_that_another_process_has_lost(store, bucket, monkeypatch):
    """All of them end so that they are started again."""
    checkpoints = Checkpoints(bucket / "checkpoints", RUN_NAME)
    checkpoints.save(make_state(1, keep_ema=False))
    report = sealed_steps._report(HttpError({"code": 503, "message": "try again"}))
    monkeypatch.setattr(sealed_steps, "gather_texts", lambda text: [text, report])
    with pytest.raises(Unreachable, match="process 1: the store says try again, 503"):
        checkpoints.finish()
    checkpoints.close()


LEFT = """
import sys, threading
from launch.errors import Unreachable
from launch.runtime import app

class Waiting(threading.Thread):
    __module__ = "orbax.checkpoint._src.futures.future"

def task(arguments):
    Waiting(target=threading.Event().wait).start()
    raise Unreachable("the store says no")

app.run(task, "Saves.", argv=sys.argv)
"""


def test_threads_of_a_save_that_has_failed_keep_no_process(tmp_path):
    """As Orbax leaves them when a store answers no more while it begins to write."""
    argv = [f"--config={DIFFUSION.config}", f"--workdir={tmp_path}"]
    command = [sys.executable, "-c", LEFT, *argv]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 75 and "lost: the store says no" in ended.stderr


def test_a_run_directory(store, bucket):
    config = ConfigDict(dict(seed=0, optimizer=dict(name="adam")))
    name = claim_workdir(bucket / "run", config, {"data": "abc"})
    assert claim_workdir(bucket / "run", config, {"data": "abc"}) == name
    with pytest.raises(InputError, match=r"seed must be 0, as when"):
        claim_workdir(bucket / "run", ConfigDict(dict(config, seed=1)), {"data": "abc"})
    save(bucket / "run", 1)
    (bucket / "run" / "config.json").unlink()
    with pytest.raises(InputError, match=r"has checkpoints, but no config\.json"):
        claim_workdir(bucket / "run", config, {"data": "abc"})


def events(store, bucket):
    (name,) = [name for name in file_names(bucket) if name.startswith("events")]
    records = TFRecordFile(f"{bucket}/{name}")
    return [Event.FromString(records[i]) for i in range(len(records))]


def test_numbers(store, bucket):
    writer = MetricWriter(bucket, 0)
    writer.write(1, {"loss": 0.5})
    figure = Figure(figsize=(1, 1))
    writer.picture(1, figure)
    writer.copy()
    # A checkpoint that is sealed now finds all that went before.
    assert read_metrics(bucket) == [{"step": 1, "loss": 0.5}]
    assert (bucket / "pictures" / "step_1.png").read_bytes().startswith(b"\x89PNG")
    assert [value.tag for event in events(store, bucket) for value in event.summary.value] == [
        "loss",
        "pictures",
    ]
    writer.write(2, {"loss": 0.25})
    writer.close()
    assert [line["step"] for line in read_metrics(bucket)] == [1, 2]
    again = MetricWriter(bucket, 1)
    again.write(2, {"loss": 0.125})
    again.close()
    assert [line["loss"] for line in read_metrics(bucket)] == [0.5, 0.125]


def test_attempts(store, bucket):
    """Those of all processes: none begins the file anew, not even behind half a line."""
    for line in ('{"a": 1}\n{"half', '{"b": 2}\n'):
        writer = MetricWriter(bucket, 0)
        writer.attempt(line)
        writer.close()
    assert (bucket / GOODPUT).read_bytes() == b'{"a": 1}\n{"half\n{"b": 2}\n'
    assert read_attempts(bucket / "missing") == read_attempts(bucket) == []
    Ledger().start(1, (bucket / "seed_0" / GOODPUT).write_text)
    assert len(read_attempts(bucket)) == 1


def test_a_checkpoint_has_the_numbers_before_it(store, bucket):
    log = TrainingLog(bucket, 0, 2, "a run", lambda: "none", Ledger())
    with contextlib.closing(log):
        log.save(1, lambda: None)
        (numbers,) = read_metrics(bucket)
        assert [attempt.end for attempt in read_attempts(bucket)] == [None]
    assert numbers.keys() == {"step", "checkpoint_seconds"}


def test_a_store_that_takes_no_numbers(store, bucket, monkeypatch, capsys):
    """Training goes on; what the store lacks is kept here, and said."""
    monkeypatch.setattr(mirror, "_SECONDS", 0.001)
    writer = MetricWriter(bucket, 0)
    store.refuse = "metrics|events"
    for step in range(30):
        writer.write(step, {"loss": 0.5})
    writer.copy()
    writer.close()
    said = capsys.readouterr().err
    assert f"warning: cannot write {bucket}/events.out" in said
    assert " and 1 more (Forbidden" in said
    folder = said.splitlines()[-1].split(" has the metrics that")[0]
    with open(f"{folder}/metrics.jsonl") as file:
        assert [json.loads(line)["step"] for line in file] == list(range(30))


def test_the_store_gets_the_numbers_while_they_are_written(store, bucket, monkeypatch):
    monkeypatch.setattr(mirror, "_SECONDS", 0.001)
    writer = MetricWriter(bucket, 0)
    writer.write(1, {"loss": 0.5})
    deadline = time.monotonic() + 30
    while not read_metrics(bucket) and time.monotonic() < deadline:
        pass
    before_the_end = read_metrics(bucket)
    writer.close()
    assert before_the_end == [{"step": 1, "loss": 0.5}]


def test_an_outage_is_waited_for_once(store, bucket, monkeypatch, capsys):
    writer = MetricWriter(bucket, 0)
    writer.write(1, {"loss": 0.5})
    store.outage, before = 503, len(store.requests)
    writer.copy()
    tried = {request for request in store.requests[before:] if "upload" in request}
    assert len(tried) == 1 and capsys.readouterr().err.count("warning") == 1
    store.outage = None
    writer.close()
    assert read_metrics(bucket) == [{"step": 1, "loss": 0.5}] and events(store, bucket)


def test_no_room_for_numbers_here(store, bucket, monkeypatch):
    """The store gets those that there are."""
    writer = MetricWriter(bucket, 0)
    writer.write(1, {"loss": 0.5})
    close = EventFile.close

    def full(file):
        close(file)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(EventFile, "close", full)
    with pytest.raises(OSError, match="No space left"):
        writer.close()
    assert read_metrics(bucket) == [{"step": 1, "loss": 0.5}]
    assert "mirror" not in [thread.name for thread in threading.enumerate()]
