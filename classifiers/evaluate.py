r"""Evaluates runs of classifiers.train on one or several sets of images, and compares them.

python -m classifiers.evaluate --config=configs/digits/evaluate.py --workdir=runs/digits/classifiers
python -m classifiers.evaluate --config=configs/cifar10/evaluate.py \
    --workdir=runs/cifar10/classifiers
python -m classifiers.evaluate --config=configs/imagenet/evaluate.py:sets=val+v2+sketch \
    --workdir=runs/imagenet

Each run below the work directory, and each of config.runs, is one arm; its seeds are its
repetitions. For every set NAME of config.sets, evaluation_NAME.json and a table give top-1, top-5,
loss, calibration error, accuracy by class, of many-, medium- and few-shot classes (config.shots)
and under attack (config.attacks); evaluation.png draws them. Finished results are kept in the
folder `evaluations`, so that the same command resumes where it stopped, and does only what is new.
The processes of a job (--coordinator) share every batch among their devices.
"""

from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from jaxtyping import Int
from tqdm import tqdm

from classifiers.evaluation import shot_groups
from classifiers.evaluation.evaluated_runs import EvaluatedRun, find_runs, open_run
from classifiers.evaluation.image_sets import EvaluationSet, check_specs, open_sets
from classifiers.evaluation.results import summary, write
from classifiers.evaluation.run_on_set import RunOnSet, check_attacks
from input_pipeline.sources.lacking import lacking_in_source
from launch.errors import InputError
from launch.runtime import app
from launch.runtime.devices import joining
from launch.runtime.devices.distributed import on_first_process
from launch.runtime.devices.mesh import make_mesh
from launch.runtime.locks import lock
from launch.runtime.optional_fields import Defaults, below, unset

define_flags = joining.define_flags


def lacking(config: ml_collections.ConfigDict) -> Defaults:
    """Fields that a config may leave out and the command line can set."""
    fields: Defaults = {}
    for name, spec in config.sets.items():
        path = f"sets.{name}"
        fields |= below(path, spec, {"label_map": "", "prepare": unset(str)})
        fields |= lacking_in_source(f"{path}.source", spec.get("source") or {})
    for name, spec in config.attacks.items():
        seeds = {"seed": 0} if spec.get("kind") == "pgd" else {}
        fields |= below(f"attacks.{name}", spec, {"sets": (), "num_images": 0, **seeds})
    return fields


def main(args: app.Arguments) -> None:
    """Runs the command."""
    # 1. Check the config, then that every run knows the classes of every set.
    config = args.config
    check(config)
    if args.dry_run:
        _describe(args)
        return
    runs = _open_runs(config, args.workdir)
    sets = open_sets(config.sets)
    for run in runs:
        for evaluation_set in sets.values():
            evaluation_set.check_model(run.path, run.num_classes, run.class_names)
    counts = shot_groups.count_images(config.shots, runs) if config.shots else None
    # 2. Evaluate each seed of each run on each set, or read what was kept.
    on_first_process(lambda: lock(args.workdir / "evaluations"))
    seeds = _evaluate(config, args.workdir, runs, sets)
    # 3. Compare the runs on each set, and write the tables and the figure.
    results = {}
    for name, evaluation_set in sets.items():
        groups = _groups(config, evaluation_set, counts)
        results[name] = summary(evaluation_set, seeds[name], config.baseline, groups)
    on_first_process(lambda: write(args.workdir, results, config.baseline))


def _groups(
    config: ml_collections.ConfigDict,
    evaluation_set: EvaluationSet,
    counts: Int[np.ndarray, " model_classes"] | None,
) -> list[str] | None:
    """None if the config asks for no groups."""
    if counts is None:
        return None
    return shot_groups.groups(counts, evaluation_set.label_map, config.shots)


def check(config: ml_collections.ConfigDict) -> None:
    """Raises InputError for a wrong field; needs no files."""
    check_specs(config.sets)
    check_attacks(config.attacks, config.sets)
    for field in ("batch_size", "calibration_bins"):
        if config[field] < 1:
            raise InputError(f"config.{field} must be at least 1, got {config[field]}")
    if config.shots:
        shot_groups.check(config.shots)


def _open_runs(config: ml_collections.ConfigDict, workdir: epath.Path) -> list[EvaluatedRun]:
    """All runs, each once.

    Raises:
        InputError: there is none, one is of another task, or two have the same name.
    """
    paths = [path for folder in config.runs for path in find_runs(epath.Path(folder))]
    # config.runs alone may be enough: --workdir then is only where results go.
    if not paths or any(workdir.glob("*/config.json")):
        paths = [*find_runs(workdir), *paths]
    # A run that is named twice counts once; two runs of one name would share their results.
    by_name: dict[str, epath.Path] = {}
    for path in paths:
        if path.name in by_name and by_name[path.name].resolve() != path.resolve():
            raise InputError(
                f"two runs have the name {path.name}: {by_name[path.name]} and {path}; "
                "rename a folder"
            )
        by_name.setdefault(path.name, path)
    return [open_run(path, **config.checkpoint) for path in by_name.values()]


def _describe(args: app.Arguments) -> None:
    workdir = args.flags.workdir or ""
    is_folder = workdir and epath.Path(workdir).exists()
    runs = _open_runs(args.config, epath.Path(workdir)) if is_folder or args.config.runs else []
    app.describe(args, **{run.name: run.seeds[0].shapes()["params"] for run in runs})
    if not runs:
        print("no parameters to count: --workdir has no runs")


def _evaluate(
    config: ml_collections.ConfigDict,
    workdir: epath.Path,
    runs: list[EvaluatedRun],
    sets: dict[str, EvaluationSet],
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Results by set and run, one per seed."""
    # Every process takes part in every batch, so all are in the same place of this loop.
    mesh = make_mesh({"data": -1})
    results: dict[str, dict[str, list]] = {name: {} for name in sets}
    with tqdm(desc="evaluate", unit="image", disable=jax.process_index() > 0) as bar:
        works = [
            (run, name, RunOnSet(run, evaluation_set, config, mesh, bar.update))
            for run in runs
            for name, evaluation_set in sets.items()
        ]
        bar.total = sum(work.num_images * len(run.seeds) for run, _, work in works)
        for run, name, work in works:
            for seed in range(len(run.seeds)):
                bar.set_description(f"{run.name} seed {seed} on {name}")
                path = workdir / "evaluations" / name / f"{run.name}-seed_{seed}.json"
                seed_results, kept = work.read_or_make(path, seed)
                # Kept results leave the bar's total, so that its estimate holds for the rest.
                bar.total -= work.num_images if kept else 0
                results[name].setdefault(run.name, []).append(seed_results)
    return results


if __name__ == "__main__":
    app.run(main, __doc__, define_flags, lacking=lacking)
