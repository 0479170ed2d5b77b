r"""Studies what synthetic images are worth: trains, evaluates and compares many classifiers.

python -m classifiers.study --config=configs/digits/study.py --workdir=runs/digits/study --jobs=2
python -m classifiers.study --config=configs/cifar10/study.py --workdir=runs/cifar10/study --dry_run
python -m classifiers.study --config=configs/imagenet/study.py --workdir=/mnt/study \
    --jobs=8 --submit="srun --gpus=8"

    cas         accuracy after training on synthetic images alone, next to real ones
    scaling     accuracy against the number of synthetic images, mean and deviation over seeds
    models      real, synthetic and both for several models, with a paired t-test over them
    per_class   accuracy by class, real against synthetic
    filters     what imagen_ft.filter keeps (config.filters.NAME=ITS WORK DIRECTORY) against as many
                synthetic images drawn at random

config.studies names the studies to make, config.models_of the models of each. The work directory
receives runs/MODEL/ARM (classifiers.train, then classifiers.evaluate), logs/, study.json, one PNG
file per figure, and report.html. The same command resumes where it stopped and makes only what is
missing.

--jobs command lines run at a time, each started by --submit, where {lane} is the job's slot, from 0
to jobs - 1, and {step} its name. Jobs on one machine would compete for its chips, so give each its
own:

    --jobs=4 --submit="env CUDA_VISIBLE_DEVICES={lane}"
    --jobs=8 --submit="srun --nodes=1 --ntasks=1 --gpus=8" --python=python3
    --jobs=8 --submit="python -m launch.submit slurm --gpus=8 --jobs=jobs/{step} --"

The command given there must wait for the job to end and pass on its exit code; every machine must
see the images, the configs and the work directory.
"""

import contextlib
import shlex
import sys
from pathlib import Path

import jax
import ml_collections

from classifiers.studies import plan, report, results
from classifiers.studies.inventory import model_size, take_inventory
from launch.cli import say
from launch.errors import InputError
from launch.files import is_local
from launch.goodput import read_attempts, summary
from launch.jobs import launcher
from launch.jobs.runner import JobRunner
from launch.runtime import app
from launch.runtime.locks import lock
from launch.runtime.optional_fields import Defaults, below, unset

define_flags = launcher.define_flags


def lacking(config: ml_collections.ConfigDict) -> Defaults:
    """Fields that a config may leave out and the command line can set."""
    fields = below("models_of", config.models_of, dict.fromkeys(plan.STUDIES, unset(tuple)))
    for label, model in config.models.items():
        fields |= below(f"models.{label}", model, {"init_from": "", "overrides": ()})
    return fields


def main(args: app.Arguments) -> None:
    """Runs the command."""
    config = args.config
    # One process at a time can hold a chip, and the jobs need them; here only shapes are computed.
    jax.config.update("jax_platforms", "cpu")
    if args.folder and not is_local(args.folder):
        raise InputError(
            f"--workdir must be a local or mounted folder for a study, got {args.folder}"
        )
    # 1. Plan: runs are what to train, jobs the command lines for them, which wait for each other.
    workdir = Path(args.folder or "WORKDIR")
    words = launcher.launcher(args.flags)
    options = launcher.options(args.flags)
    runs = plan.make_runs(config, workdir)
    jobs = plan.make_jobs(config, runs)
    if args.dry_run:
        _describe(args, runs, [shlex.join([*words, *job.command, *options]) for job in jobs])
        return
    # 2. Open every image set once, so that a missing one ends the study before any job starts.
    inventory = take_inventory(config, runs)
    lock(args.workdir)
    # 3. Run the jobs that are not done.
    environment = {name: str(value) for name, value in config.environment.items()}
    runner = JobRunner(workdir, jobs, args.flags.jobs, environment, words, options)
    runner.run()
    runner.tick()
    # 4. Read the evaluations of all runs, and report.
    result = results.collect(config, runs, inventory)
    training = summary([attempt for run in runs for attempt in read_attempts(run.folder)])
    report.write(workdir, f"What synthetic images are worth: {config.name}", result, training)
    print(report.tables(result))
    say(f"report: {workdir / 'report.html'}", sys.stdout)


def _describe(args: app.Arguments, runs: list[plan.PlannedRun], commands: list[str]) -> None:
    app.describe(args)
    for command in commands:
        print(command)
    for label, run in {run.model: run for run in runs}.items():
        # Without the images, the shape of the model's input is unknown.
        with contextlib.suppress(InputError):
            print(f"{label}: {model_size(run.config)[1]:,} parameters")
    trainings = sum(run.config.seeds for run in runs)
    print(f"{len(runs)} runs of classifiers.train, {trainings} trainings over all seeds")


if __name__ == "__main__":
    app.run(main, __doc__, define_flags, lacking=lacking)
