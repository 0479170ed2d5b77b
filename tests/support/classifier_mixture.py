"""Tiny trainings on real and synthetic digits."""

from classifiers import train
from classifiers.training import train_seeds
from configs.digits import classifier
from launch.runtime.training.metrics import read_metrics
from tests.support import commands

REAL = dict(name="digits", split="train")


def run(workdir, sources, **fields):
    """Trains a tiny network for four steps; returns the exit code."""
    config = classifier.get_config("runlocal").to_dict()
    config["train_sources"] = sources
    config["model"] |= dict(stage_sizes=(1,), width=4)
    config |= dict(seeds=1, batch_size=16, total_steps=4, log_every=1, checkpoint_every=2)
    path = workdir.with_suffix(".py")
    path.write_text(
        "from ml_collections import ConfigDict\n"
        f"def get_config():\n    return ConfigDict({config | fields!r})\n"
    )
    return commands.run(train.main, path, workdir)


def losses(workdir):
    return [line["loss"] for line in read_metrics(workdir / "seed_0") if "loss" in line]


def drawn(monkeypatch, workdir, sources, **fields):
    """The first batches of the training."""
    fits = []
    monkeypatch.setattr(train_seeds, "fit", lambda **arguments: fits.append(arguments))
    assert run(workdir, sources, **fields) == 0
    return list(fits[-1]["batches"](0, 20))
