r"""Tests how much classifiers lose when images are drawn with fewer network evaluations.

python -m imagen_ft.worth --config=configs/digits/fast_study.py --workdir=runs/digits/fast --jobs=2
python -m imagen_ft.worth --config=configs/digits/fast_study.py:solvers=dpmpp \
    --workdir=runs/digits/dpmpp
python -m imagen_ft.worth --config=configs/digits/fast_study.py:runlocal --dry_run

Distils the stages (config.distilled), draws the images of every arm (solvers with the evaluations
of config.settings, the students, and config.reference), trains the same classifiers on each with
the same seeds, and tests which arms are as good as the reference: within config.margin, by two
one-sided t-tests. The work directory gets worth.json, worth.png and report.html. The same command
resumes where it stopped, and makes only what is missing.

--jobs command lines run at a time, each started by --submit, as in classifiers.study.
"""

import shlex
import sys
from pathlib import Path

import jax
import ml_collections

from imagen_ft.cascade.loading import parameter_shapes
from imagen_ft.economy import plan, report, results
from launch.cli import say
from launch.errors import InputError
from launch.files import is_local
from launch.jobs import launcher
from launch.jobs.runner import JobRunner
from launch.runtime import app
from launch.runtime.config import load_config
from launch.runtime.locks import lock
from launch.runtime.optional_fields import Defaults, below

define_flags = launcher.define_flags


def lacking(config: ml_collections.ConfigDict) -> Defaults:
    """Optional fields that the config leaves out and the command line can set."""
    return below("", config, {"overrides": ()})


def main(args: app.Arguments) -> None:
    """Runs the task."""
    config = args.config
    # A chip is held by one process at a time: leave it to the jobs, as this one only needs shapes.
    jax.config.update("jax_platforms", "cpu")
    if args.folder and not is_local(args.folder):
        raise InputError(
            f"--workdir must be a local or mounted folder for a study, got {args.folder}"
        )
    workdir = Path(args.folder or "WORKDIR")
    # 1. All arms and jobs, as command lines.
    words = launcher.launcher(args.flags)
    options = launcher.options(args.flags)
    arms = plan.make_arms(config, workdir)
    jobs = plan.make_jobs(config, workdir, arms)
    if args.dry_run:
        app.describe(args, **parameter_shapes(load_config(config.generate), base=False))
        for job in jobs:
            print(shlex.join([*words, *job.command, *options]))
        for arm in arms:
            print(f"{arm.name}: {arm.evaluations} network evaluations per image")
        return
    # 2. Run the jobs whose outputs are missing.
    lock(args.workdir)
    environment = {name: str(value) for name, value in config.get("environment", {}).items()}
    runner = JobRunner(workdir, jobs, args.flags.jobs, environment, words, options)
    runner.run()
    # Saves the total time.
    runner.tick()
    # 3. Test the arms and report.
    result = results.collect(config, workdir, arms)
    report.write(workdir, config.name, result)
    print(report.table(result))
    print(f"\n{report.verdict(result)[0]}")
    say(f"report: {workdir / 'report.html'}", sys.stdout)


if __name__ == "__main__":
    app.run(main, __doc__, define_flags, lacking=lacking)
