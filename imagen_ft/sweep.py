r"""Finds the best way to sample one stage: draws and measures every point of a grid of settings.

python -m imagen_ft.sweep --config=configs/digits/sweep.py --workdir=runs/digits/sweep
python -m imagen_ft.sweep --config=configs/imagenet/sweep_base.py --workdir=runs/sweep \
    --budget=900000
python -m imagen_ft.sweep --config=configs/imagenet/sweep_base.py --workdir=runs/sweep --worker=3 \
    --num_workers=64
python -m imagen_ft.sweep --config=configs/digits/sweep.py --workdir=runs/digits/sweep --cas \
    --jobs=2

config.grid has the values of each dimension: sampler, num_steps, logvar_coeff, eta, order,
guidance_weight, noise_augmentation, ema and the other settings of `Cascade.with_`. All points have
the same classes and noise, and a super-resolution stage enlarges the same images at all of them:
those that the stages before it draw, once, or shrunk real images (config.low).

The work directory gets sweep.csv, figures, report.html and best.py, the best setting by
config.choose_by as a config for imagen_ft.generate and imagen_ft.sample. --budget=N spends N images
in total: a few on every point, then more on the best ones (successive halving by
config.halving.measure). --cas trains a classifier on the images of each point of the last round
(config.cas), in processes of their own, which --submit starts as in classifiers.study, and adds
their accuracies to the outputs.

The same command resumes where it stopped. Any number of workers, each a process or a job of several
hosts (--coordinator), share one folder.
"""

from pathlib import Path

import jax
import ml_collections
from absl import flags

from imagen_ft.cascade.loading import (
    lacking_in_cascade,
    lacking_in_mesh,
    parameter_shapes,
    with_dtypes,
)
from imagen_ft.cascade.starts import check_noise
from imagen_ft.diffusion.from_config import make_stages
from imagen_ft.evaluation.extractors import Kind, check_extractor, open_extractor
from imagen_ft.evaluation.image_sets import check_spec
from imagen_ft.evaluation.lacking import lacking_in_images, lacking_in_measuring
from imagen_ft.evaluation.references import check_references, open_references
from imagen_ft.evaluation.seeing import check_measures
from imagen_ft.generation.contents import lacking_in_set
from imagen_ft.sweeping import report, trained
from imagen_ft.sweeping.bench import Bench
from imagen_ft.sweeping.grid import DIMENSIONS, Point, make_points
from imagen_ft.sweeping.rounds import Round, cost, plan_rounds
from imagen_ft.sweeping.rows import CAS, CHOICES
from imagen_ft.sweeping.work import Sweep
from launch.errors import InputError
from launch.files import is_local
from launch.jobs import launcher
from launch.runtime import app
from launch.runtime.devices import joining
from launch.runtime.devices.distributed import on_first_process
from launch.runtime.limits import BATCH, MOST, SEED, check_numbers
from launch.runtime.locks import join, lock, one_at_a_time
from launch.runtime.optional_fields import Defaults, below, unset, within

# Lowest and highest values of the config's numbers.
_LIMITS = {
    "num_images": (2, MOST),
    "batch_size": BATCH,
    "num_worst": (0, MOST),
    "num_shown": (1, MOST),
}
_HALVING = {"factor": (2, MOST), "finalists": (1, MOST)}


def define_flags(values: flags.FlagValues) -> None:
    """Flags of this command."""
    joining.define_flags(values)
    launcher.define_flags(values)
    flags.DEFINE_integer(
        "worker", 0, "index of this worker among --num_workers, from 0", flag_values=values
    )
    flags.DEFINE_integer("num_workers", 1, "workers that share --workdir", flag_values=values)
    flags.DEFINE_integer(
        "budget",
        0,
        "images in total, spent by successive halving; 0 for the whole grid",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "cas", False, "train a classifier on the images of each point that is compared",
        flag_values=values,
    )  # fmt: skip


def lacking(config: ml_collections.ConfigDict) -> Defaults:
    """Optional fields that the config leaves out and the command line can set."""
    cascade = config.cascade
    of_cascade = (lacking_in_cascade, lacking_in_mesh, lacking_in_set)
    fields = {
        **below("grid", config.grid, dict.fromkeys(DIMENSIONS, unset(tuple))),
        **lacking_in_measuring(config),
        **trained.lacking_in_cas(config.cas),
    }
    for lacking_in_part in of_cascade:
        fields |= within("cascade", lacking_in_part(cascade))
    if cascade.stages[config.stage].stage.low_size:
        fields |= lacking_in_images("low", config.low)
    return fields


def main(args: app.Arguments) -> None:
    """Runs the task."""
    config, values = args.config, args.flags
    if not 0 <= values.worker < values.num_workers:
        raise InputError(
            f"--worker must be from 0 to {values.num_workers - 1}, got {values.worker}"
        )
    # 1. Check, and expand the grid; nothing is loaded.
    kind = check(config)
    config = _with_dtypes(config)
    points = make_points(config)
    if values.budget < 0:
        raise InputError(
            "--budget must be a total number of images, or 0 for the whole grid, got "
            f"{values.budget}"
        )
    halving = config.halving
    rounds = plan_rounds(
        len(points), config.num_images, values.budget, halving.factor, halving.finalists
    )
    # 2. Other things that the command can do: describe, or train classifiers.
    if args.dry_run:
        app.describe(args, **parameter_shapes(config.cascade, base=False))
        _describe(config, points, rounds)
        return
    if values.cas:
        _score(args, config, points)
        return
    # 3. Open the extractor and real images, then join the other workers in the work directory.
    extractor = open_extractor(config.extractor)
    references = open_references(config, extractor, extractor.transform is not None)
    on_first_process(lambda: join(args.workdir, values.worker, values.num_workers))
    bench = Bench(config, args.workdir, kind, extractor, references)
    # 4. Draw and measure; returns when all workers' points are done.
    rows = Sweep(bench, points, rounds, values.worker, values.num_workers).run()

    # 5. Report. Every worker writes the same files, one after the other.
    def finish() -> None:
        with one_at_a_time(args.workdir):
            report.keep(args.workdir, config, rows)
            report.write(args.workdir, config, points, rows)

    on_first_process(finish)


def check(config: ml_collections.ConfigDict) -> Kind:
    """Checks all of a config that needs no files, except its grid; returns its extractor's row.

    Raises `InputError` if a field is wrong.
    """
    # 1. Extractor, numbers, measures.
    kind = check_extractor(config.extractor)
    check_numbers(config, _LIMITS)
    check_numbers(config.cascade, {"batch_size": BATCH, "seed": SEED}, "config.cascade")
    check_noise("config.cascade", config.cascade)
    check_numbers(config.halving, _HALVING, "config.halving")
    check_measures("config.measures", config.measures, config.extractor.name)
    # 2. Points must be ranked by measures that are taken.
    for field, name in (
        ("choose_by", config.choose_by),
        ("halving.measure", config.halving.measure),
    ):
        there = [choice for choice in CHOICES if choice in config.measures]
        there += [CAS] if config.cas and field == "choose_by" else []
        if name not in there:
            raise InputError(
                f"config.{field} must be one of {', '.join(there)}, got {name!r}; choose one, or "
                "add it to config.measures"
            )
    # 3. Real images, images to enlarge, classifiers.
    check_references(config)
    if config.low:
        check_spec("config.low", config.low)
        if not config.cascade.stages[config.stage].stage.low_size:
            raise InputError(
                "config.low must be empty for a stage that starts from noise, got images for "
                f"{config.stage!r}; leave it empty"
            )
    if config.cas:
        trained.check(config)
    return kind


def _with_dtypes(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    resolved = config.copy_and_resolve_references()
    with resolved.unlocked():
        resolved.cascade = with_dtypes(config.cascade)
    return resolved.lock()


def _describe(config: ml_collections.ConfigDict, points: list[Point], rounds: list[Round]) -> None:
    for point in points:
        print(f"{point.name}: {point.evaluations:,} network evaluations per image")
    # Who survives is unknown: count the most expensive points for an upper bound.
    drawn, most = 0, sorted((point.evaluations for point in points), reverse=True)
    total = 0
    for entry in rounds:
        # Points keep the images of earlier rounds.
        new = entry.images - drawn
        total += new * sum(most[: entry.points])
        print(f"{entry.points} points, {new:,} images more of each, {entry.images:,} in all")
        drawn = entry.images
    print(f"{len(points)} points, {cost(rounds):,} images, at most {total:,} evaluations")
    if lower := _evaluations_before(config):
        print(f"once for all points: {drawn:,} images to begin with, {lower * drawn:,} evaluations")


def _evaluations_before(config: ml_collections.ConfigDict) -> int:
    # Evaluations for one image of the stages below the swept one; real images cost none.
    if config.low:
        return 0
    low_size = config.cascade.stages[config.stage].stage.low_size
    stages = make_stages(config.cascade, base=False).values()
    return sum(stage.evaluations for stage in stages if stage.denoiser.low_size < low_size)


def _score(args: app.Arguments, config: ml_collections.ConfigDict, points: list[Point]) -> None:
    """Trains the classifiers of all points of the last round, and writes the report again."""
    if not config.cas:
        raise InputError("--cas needs config.cas, which says how a classifier is trained; add it")
    if not is_local(args.workdir):
        raise InputError(
            f"--workdir must be a local or mounted folder for --cas, got {args.workdir}"
        )
    # A chip is held by one process at a time: leave it to the classifiers.
    jax.config.update("jax_platforms", "cpu")
    words = launcher.launcher(args.flags)
    lock(args.workdir)
    # 1. Points of the last round with finite images.
    rows = report.kept(args.workdir, config)
    names = [row.name for row in rows if row.is_final and row.measured]
    options = launcher.options(args.flags)
    workdir = Path(args.workdir)
    # 2. Train what is missing, then report with the scores.
    trained.run_jobs(config, workdir, names, args.flags.jobs, words, options)
    report.write(args.workdir, config, points, rows)


if __name__ == "__main__":
    app.run(main, __doc__, define_flags, lacking=lacking)
