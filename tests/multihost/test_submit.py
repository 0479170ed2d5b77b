"""`launch.submit local`: as many processes as are wanted, of one job, and what becomes of it."""

import os
import signal
import subprocess
import sys
import time

import pytest

from launch.submit import record
from tests.support import ROOT
from tests.support.tiny_runs import DIFFUSION

STEPS, EVERY = 200, 50
OPTIONS = (
    f"--config.total_steps={STEPS}",
    f"--config.checkpoint_every={EVERY}",
    "--config.evaluate_every=0",
    "--config.pictures_every=0",
)


def start(folder, processes):
    """Starts the launcher, which has the job's name and its run directory from `folder`."""
    command = [sys.executable, "-m", "launch.submit", "local", f"--jobs={folder.parent / 'jobs'}"]
    command += [f"--processes={processes}", "--devices=cpu", "--", "python", "-m"]
    command += [DIFFUSION.module, f"--config={DIFFUSION.config}", f"--workdir={folder}", *OPTIONS]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(command, cwd=ROOT, **pipes)


def finish(launcher):
    said, _ = launcher.communicate(timeout=400)
    assert launcher.returncode == 0, said


def wait_for_step(folder, launcher, step):
    while not any(line["step"] >= step for line in DIFFUSION.lines(folder)):
        assert launcher.poll() is None, launcher.communicate()[0]
        time.sleep(0.02)


def pid_of(launcher, process):
    command = ["pgrep", "-P", str(launcher.pid), "-f", f"process_id={process}"]
    return int(subprocess.check_output(command, text=True))


def losses(folder):
    return [line["loss"] for line in DIFFUSION.lines(folder) if "loss" in line]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "one"
    finish(start(folder, 1))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_the_losses_of_one_process(alone, tmp_path, processes):
    finish(start(tmp_path / "run", processes))
    ours, theirs = losses(tmp_path / "run"), losses(alone)
    assert len(theirs) == STEPS
    assert ours[:10] == pytest.approx(theirs[:10], rel=1e-6)
    assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.slow
def test_one_process_is_killed(alone, tmp_path):
    """The rest ends within 30 seconds, and the same command goes on."""
    launcher = start(tmp_path / "run", 2)
    wait_for_step(tmp_path / "run", launcher, EVERY + 5)
    os.kill(pid_of(launcher, 1), signal.SIGKILL)
    began = time.monotonic()
    said, _ = launcher.communicate(timeout=100)
    assert time.monotonic() - began < 30 and launcher.returncode in (75, 137), said
    finish(start(tmp_path / "run", 2))
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), rel=1e-4)
    kept = record.read(tmp_path / "jobs", "run")
    assert kept.state == "done" and kept.exit_codes == [0]


@pytest.mark.slow
def test_sigterm_and_a_second_terminal(alone, tmp_path):
    """Both processes save at one step; `status` and `stop` find the job."""
    launcher = start(tmp_path / "run", 2)
    wait_for_step(tmp_path / "run", launcher, 5)
    command = [sys.executable, "-m", "launch.submit", f"--jobs={tmp_path / 'jobs'}", "run"]
    command[3:3] = ["stop"]
    subprocess.run(command, cwd=ROOT, check=True)
    said, _ = launcher.communicate(timeout=200)
    assert launcher.returncode == 75 and "is saved at step" in said, said
    assert record.read(tmp_path / "jobs", "run").state == "stopped"
    finish(start(tmp_path / "run", 1))
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), rel=1e-4)
