"""classifiers.train as its command line runs it, with a tiny network."""

from tests.support import commands

TINY = [
    "--config.model.stage_sizes=(1,)",
    "--config.model.width=4",
    "--config.batch_size=16",
    "--config.total_steps=4",
    "--config.log_every=2",
    "--config.evaluation_batch_size=50",
]


def run(task, config, workdir, *argv):
    """Runs it with a config of the digits; returns the exit code."""
    return commands.run(task, f"configs/digits/{config}", workdir, *argv)
