"""Runs of classifiers that were not trained."""

from etils import epath

from launch.runtime.checkpoints.checkpoint import save_inference
from launch.runtime.run_record import seed_name, write_record


def write_run(folder, config, *seeds):
    """Writes a finished run; each seed's checkpoint holds its variables."""
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    run_name = write_record(folder, config, inputs={})
    for number, variables in enumerate(seeds):
        seed = f"seed_{number}"
        save_inference(folder / seed, seed_name(run_name, seed), variables)
