"""The road from training to a synthetic set, killed at gs://, gives what it gives on a disk."""

import os
import signal
import subprocess
import sys
import time

import pytest
from etils import epath

from launch.folders import file_names
from launch.runtime.training.metrics import read_metrics
from tests.multihost.test_training import start_two
from tests.support import ROOT, tiny_runs
from tests.support.tiny_runs import DIFFUSION

STAGES = ("base4", "sr8")


def start(module, config, workdir, *argv):
    command = [sys.executable, "-m", module, f"--config=configs/digits/{config}.py:runlocal"]
    return subprocess.Popen(
        [*command, f"--workdir={workdir}", *argv],
        cwd=ROOT,
        env=os.environ | {"NPROC": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*processes):
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    return outputs


def train(folder, stage, *argv):
    return start("imagen_ft.finetune", f"pretrain_{stage}", f"{folder}/{stage}", *argv)


def generate(folder, *argv):
    runs = [f"--config.stages.{stage}.run={folder}/{stage}" for stage in STAGES]
    options = ["--config.copies=2", "--config.images_per_shard=15", "--config.batch_size=15"]
    return start("imagen_ft.generate", "generate", f"{folder}/set", *runs, *options, *argv)


def losses(folder, stage):
    return [(line["step"], line["loss"]) for line in read_metrics(folder / stage) if "loss" in line]


@pytest.mark.slow
def test_the_road(store, bucket, tmp_path):
    disk = epath.Path(tmp_path)
    for stage in STAGES:
        finish(train(disk, stage, "--config.log_every=1"))
    finish(generate(disk))

    store.fail_every = 100
    for stage in STAGES:
        run = train(bucket, stage, "--config.log_every=1")
        while f"{stage}/checkpoints/5/digests_0_of_1.json" not in store.names(bucket.parts[-1]):
            assert run.poll() is None, run.communicate()
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
        run.communicate()
        (said,) = finish(train(bucket, stage, "--config.log_every=1"))
        assert f"{stage}: 0/20 steps" not in said
        assert losses(bucket, stage) == losses(disk, stage)
    workers = [(f"--worker={worker}", "--num_workers=2") for worker in range(2)]
    killed = generate(bucket, *workers[0])
    while not any("/index/" in name for name in store.names(bucket.parts[-1], "set/")):
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    finish(*(generate(bucket, *worker) for worker in workers))
    finish(generate(bucket, "--verify"))
    shards = [name for name in file_names(disk / "set") if "tfrecord" in name]
    assert len(shards) == 4
    for name in shards:
        assert (bucket / "set" / name).read_bytes() == (disk / "set" / name).read_bytes(), name


@pytest.mark.slow
def test_two_processes(store, bucket, tmp_path):
    """A job of two, each with two devices, writes a run at gs:// together."""
    for folder in (epath.Path(tmp_path), bucket):
        tiny_runs.finish(*start_two(folder))
    assert DIFFUSION.numbers(bucket) == DIFFUSION.numbers(epath.Path(tmp_path))
    seals = [name for name in file_names(bucket) if name.startswith("checkpoints/20/digests_")]
    assert [name[-6:-5] for name in seals] == ["2", "2"]
