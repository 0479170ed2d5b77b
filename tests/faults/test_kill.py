"""kill -9 at the worst moments, then the same command: the result of an uninterrupted run."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import ROOT


def start_demo(workdir: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "imagen_ft.demo", "--runlocal", f"--workdir={workdir}"]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(demo: subprocess.Popen) -> str:
    output, _ = demo.communicate(timeout=600)
    assert demo.returncode == 0, output
    return output


def kill_when(workdir: Path, happened: Callable[[Path], bool]) -> None:
    demo = start_demo(workdir)
    while not happened(workdir):
        assert demo.poll() is None, f"the demo ended early: {demo.communicate()[0]}"
        time.sleep(0.01)
    os.kill(demo.pid, signal.SIGKILL)
    demo.communicate()


# In the middle of training, of saving a checkpoint, between shards, of classifiers, of the end.
MOMENTS = {
    "training": lambda d: (d / "pretrain_base4" / "metrics.jsonl").exists(),
    "saving": lambda d: any((d / "pretrain_sr8" / "checkpoints").glob("*tmp*")),
    "saved, not sealed": lambda d: (d / "finetune_base4" / "checkpoints" / "5").exists(),
    "generating": lambda d: any((d / "synthetic").glob("*.tfrecord-*")),
    "classifying": lambda d: (d / "classifiers" / "real" / "seed_1" / "metrics.jsonl").exists(),
    "comparing": lambda d: (d / "steps" / "real+synthetic_30x.json").exists(),
}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, finish(start_demo(workdir))


@pytest.mark.slow  # Starts the demo seven times; its parts are killed in the other tests here.
def test_killed_demo_ends_with_the_numbers_of_an_uninterrupted_one(whole_run, tmp_path):
    whole, _ = whole_run
    for happened in MOMENTS.values():
        kill_when(tmp_path, happened)
    finish(start_demo(tmp_path))

    expected, got = (json.loads((d / "report.json").read_text()) for d in (whole, tmp_path))
    assert got["arms"] == expected["arms"]
    assert got["nearest_neighbours"] == expected["nearest_neighbours"]
    for shard in sorted((whole / "synthetic").glob("*.tfrecord-*")):
        assert (tmp_path / "synthetic" / shard.name).read_bytes() == shard.read_bytes()
    for run in ("pretrain_base4", "pretrain_sr8", "finetune_base4", "finetune_sr8"):
        assert losses(tmp_path / run) == losses(whole / run)


def losses(run: Path) -> list[tuple[int, float | None, float | None]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line.get("loss"), line.get("validation_loss")) for line in lines]


@pytest.mark.slow  # The road of the fast suite is shorter, see tests/imagen_ft/demo.
def test_demo_reports_and_does_nothing_twice(whole_run):
    workdir, output = whole_run
    report = json.loads((workdir / "report.json").read_text())
    arms = {"real", "pool", "synthetic", "pretrained"}
    arms |= {f"real+synthetic_{k}x" for k in (1, 10, 30)}
    assert set(report["arms"]) == arms
    for arm in report["arms"].values():
        assert len(arm["accuracies"]) == 2
    assert report["arms"]["real"]["p_value"] is None
    assert report["wall_seconds"] > 0 and report["peak_memory_bytes"] > 2**27
    page = (workdir / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 5
    assert "real+synthetic_10x" in output

    checkpoint = workdir / "pretrain_base4" / "checkpoints" / "20" / "digests_0_of_1.json"
    before = checkpoint.stat().st_mtime_ns
    again = finish(start_demo(workdir))
    steps = output.count(": done in ")
    assert (
        steps == again.count("already complete") == 15 and checkpoint.stat().st_mtime_ns == before
    )
