"""A run of imagen_ft.finetune that compiles and trains in seconds, with everything switched on."""

import os
import subprocess
import sys
from pathlib import Path

from ml_collections import ConfigDict

from configs.digits import common
from launch.runtime.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]

STEPS, BATCH = 20, 16


def stage():
    """8 px super-resolution with a learned variance, as IF's."""
    return dict(
        size=8,
        low_size=4,
        channels=1,
        schedule="squaredcos_cap_v2",
        learned_variance=True,
        unet=dict(
            block_out_channels=(8,),
            layers_per_block=1,
            attention=(False,),
            cross_attention_dim=8,
            attention_head_dim=8,
            num_groups=4,
            cross_num_groups=4,
            pooling_heads=2,
            dtype="float32",
        ),
    )


def get_config(arg=""):
    """Twenty steps; saved every fourth, evaluated every fifth, drawn at the tenth and last."""
    config = common.training(stage(), "adam", 1e-3, "constant", "train", "", STEPS, BATCH)
    config.loss.vlb_weight = 1e-3
    config.ema = ConfigDict(dict(main=dict(decay=0.9), slow=dict(decay=0.99)))
    config.log_every, config.checkpoint_every, config.evaluate_every = 1, 4, 5
    config.evaluation_draws, config.pictures_every = 1, 10
    config.pictures = dict(
        count=2,
        sampler=dict(name="ddim", num_steps=2, eta=0.0),
        guidance_weight=2.0,
        threshold_percentile=100.0,
    )
    config.best = dict(metric="validation_loss", mode="min")
    return config


def start(workdir, *argv, process=None, port=None):
    """Starts the run, alone on one device or as one of two processes with two devices each."""
    command = [sys.executable, "-m", "imagen_ft.finetune", f"--workdir={workdir}"]
    command += ["--config=tests/imagen_ft/tiny_training.py", *argv]
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


def finish(*started):
    """Waits for runs to succeed."""
    outputs = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0] * len(started), outputs
    return outputs


def numbers(workdir, names=("loss", "gradient_norm", "validation_loss", "validation_loss_slow")):
    """(step, ...) of every line that has one of them: not the times of checkpoints."""
    lines = [line for line in read_metrics(workdir) if not line.keys().isdisjoint(names)]
    return [(line["step"], *(line.get(name) for name in names)) for line in lines]
