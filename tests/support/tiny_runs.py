"""Runs of both trainers that take seconds: started as commands, compared by their numbers."""

import dataclasses
import os
import subprocess
import sys

from launch.runtime.training.metrics import read_metrics
from tests.support import ROOT


@dataclasses.dataclass(frozen=True)
class TinyRun:
    """A command line.

    Attributes:
        module: the task.
        config: its config file.
        folder: part of the run directory that has the numbers and checkpoints.
        names: of the numbers to compare.
    """

    module: str
    config: str
    folder: str
    names: tuple[str, ...]

    def start(self, workdir, *argv, process=None, port=None):
        """Starts it, alone on one device or as one of two processes with two devices each."""
        command = [sys.executable, "-m", self.module, f"--workdir={workdir}"]
        command += [f"--config={self.config}", *argv]
        devices = 1
        if process is not None:
            command += [f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
            command += [f"--process_id={process}", "--config.mesh.fsdp=2"]
            devices = 2
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def lines(self, workdir):
        """All lines that it has logged."""
        return read_metrics(workdir / self.folder)

    def numbers(self, workdir):
        """(step, ...) of every line with one of the names, which leaves out checkpoint times."""
        lines = [line for line in self.lines(workdir) if not line.keys().isdisjoint(self.names)]
        return [(line["step"], *(line.get(name) for name in self.names)) for line in lines]


DIFFUSION = TinyRun(
    "imagen_ft.finetune",
    "tests/imagen_ft/tiny_training.py",
    "",
    ("loss", "gradient_norm", "validation_loss", "validation_loss_slow"),
)
CLASSIFIER = TinyRun(
    "classifiers.train",
    "tests/classifiers/tiny_training.py",
    "seed_0",
    ("loss", "gradient_norm", "accuracy", "validation_accuracy"),
)
SEEDS = dataclasses.replace(
    CLASSIFIER,
    config=f"{CLASSIFIER.config}:vmap_seeds",
    folder="seeds",
    names=(*CLASSIFIER.names, "loss_by_seed/0", "loss_by_seed/1"),
)


def finish(*started):
    """Waits until all runs have succeeded."""
    outputs = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0] * len(started), outputs
    return outputs
