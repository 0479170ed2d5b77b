"""Which ways of drawing images are compared, and the command lines that train their classifiers.

An arm is a set of images that a cascade has drawn in one way, with the classifiers that see only
these.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import ml_collections

from imagen_ft import generate
from imagen_ft.diffusion.from_config import make_stages
from imagen_ft.diffusion.sampler_from_config import make_sampler
from imagen_ft.diffusion.schedule import make_schedule
from launch.errors import InputError
from launch.jobs.runner import Job
from launch.runtime import app
from launch.runtime.config import load_config

DISTILLED, REAL, REFERENCE = "distilled", "real", "reference"
_MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True)
class Arm:
    """A way of drawing images."""

    name: str  # of its folders
    kind: str  # a solver's name, `DISTILLED` or `REFERENCE`
    evaluations: int  # of the networks for one image, all stages together
    by_stage: tuple[int, ...]
    command: tuple[str, ...]  # arguments after `python -m` that draw its images
    after: tuple[str, ...] = ()  # names of the jobs that train its stages


def make_arms(config: ml_collections.ConfigDict, workdir: Path) -> list[Arm]:
    """The reference, then the solvers' arms and the students', from many evaluations to few.

    Raises `InputError` if a field is wrong, here or in the config of the images.
    """
    _check(config)
    # 1. The reference: many steps, the accuracy that others have to reach.
    first = _arm(config, workdir, REFERENCE, config.reference.sampler, config.reference.steps)
    arms = [first]
    # 2. Each solver, with as many steps as its evaluations allow; some cannot take a single one.
    for solver in config.solvers:
        for budget in config.settings:
            steps = [
                _steps_within(config, stage, solver, count)
                for stage, count in zip(config.runs, budget, strict=True)
            ]
            if all(steps):
                arms.append(_arm(config, workdir, solver, solver, steps))
    # 3. Students of progressive distillation, which take DDIM steps (Salimans & Ho 2022).
    arms += [_arm(config, workdir, DISTILLED, "ddim", steps) for steps in config.distilled]
    # Several budgets may allow the same steps: keep one arm for them.
    return list({arm.name: arm for arm in arms}.values())


def _check(config: ml_collections.ConfigDict) -> None:
    for field in ("settings", "distilled"):
        for steps in config[field]:
            if len(steps) != len(config.runs) or any(type(n) is not int or n < 1 for n in steps):
                raise InputError(
                    f"config.{field} must have one number of steps, at least 1, for each of "
                    f"{', '.join(config.runs)}, got {tuple(steps)}"
                )
    for steps in config.distilled:
        # Each round of distillation halves the steps: the ratio must be a power of two.
        for count, whole in zip(steps, config.reference.steps, strict=True):
            if count >= whole or whole % count or (whole // count) & (whole // count - 1):
                raise InputError(
                    "config.distilled must be config.reference.steps, "
                    f"{tuple(config.reference.steps)}, halved one or more times, got {tuple(steps)}"
                )
    if not 0.0 < config.margin < 1.0:
        raise InputError(
            f"config.margin must be a fraction of images between 0 and 1, got {config.margin}; "
            "0.01 is 1%"
        )


def _steps_within(
    config: ml_collections.ConfigDict, stage: str, solver: str, evaluations: int
) -> int:
    """The most steps of a solver within so many evaluations; 0 if even one step needs more."""
    schedule = make_schedule(load_config(config.generate).stages[stage].stage.schedule)
    for steps in range(evaluations, 0, -1):
        # Solvers of higher order evaluate more than once a step: ask the sampler for its times.
        fields = dict(name=solver, num_steps=steps, logvar_coeff=0.0, eta=0.0)
        sampler = make_sampler(ml_collections.ConfigDict(fields))
        if len(sampler.evaluation_times(schedule)) <= evaluations:
            return steps
    return 0


def _arm(
    config: ml_collections.ConfigDict,
    workdir: Path,
    kind: str,
    solver: str,
    steps: Sequence[int],
) -> Arm:
    name = f"{kind}_{'_'.join(map(str, steps))}"
    # 1. Overrides of each stage: its run, or its student's, and its sampler.
    overrides, after = [], []
    for (stage, run), count in zip(config.runs.items(), steps, strict=True):
        if kind == DISTILLED:
            after.append(_round_name(stage, count))
            run = _student(workdir, stage, count)
        path = f"stages.{stage}"
        overrides += [f"{path}.run={run}", f"{path}.sampler.name={solver}"]
        overrides += [f"{path}.sampler.num_steps={count}"]
        overrides += [f"{path}.sampler.{field}" for field in config.solvers.get(solver, ())]
    # 2. The command, resolved as it will be, to count evaluations: guidance costs a second one.
    argv = (
        f"--config={config.generate}",
        f"--workdir={workdir / 'sets' / name}",
        *(f"--config.{override}" for override in overrides),
    )
    resolved = app.parse(["imagen_ft.generate", *argv], lacking=generate.lacking).config
    by_stage = tuple(stage.evaluations for stage in make_stages(resolved).values())
    command = ("imagen_ft.generate", *argv)
    return Arm(name, kind, sum(by_stage), by_stage, command, tuple(after))


def _round_name(stage: str, steps: int) -> str:
    return f"distil-{stage}-{steps}"


def _student(workdir: Path, stage: str, steps: int) -> Path:
    return workdir / DISTILLED / f"{stage}_{steps}"


def rounds(config: ml_collections.ConfigDict, workdir: Path) -> list[Job]:
    """The distillation of each stage: a job for each time that its steps are halved."""
    file, _, arguments = config.distill.partition(":")
    jobs = []
    for place, (stage, run) in enumerate(config.runs.items()):
        # As many rounds as the student with the fewest steps needs; the others are on the way to
        # it.
        fewest = min((steps[place] for steps in config.distilled), default=0)
        steps, teacher = config.reference.steps[place] // 2, run
        after: tuple[str, ...] = ()
        while fewest and steps >= fewest:
            folder, name = _student(workdir, stage, steps), _round_name(stage, steps)
            words = [arguments, f"stage={stage}", f"steps={steps}", f"teacher={teacher}"]
            command = (
                "imagen_ft.finetune",
                f"--config={file}:{','.join(filter(None, words))}",
                f"--workdir={folder}",
            )
            jobs.append(Job(name, command, (Path(file),), folder, after, 60.0))
            # The student of one round teaches the next.
            steps, teacher, after = steps // 2, str(folder), (name,)
    return jobs


def make_jobs(config: ml_collections.ConfigDict, workdir: Path, arms: Sequence[Arm]) -> list[Job]:
    """The distillation, and for each arm its images, its classifiers and their evaluation."""
    jobs = rounds(config, workdir)
    for arm in arms:
        output = workdir / "sets" / arm.name / _MANIFEST
        # A rough guess, which only the progress bar uses.
        seconds = 10.0 + arm.evaluations
        jobs.append(Job(f"draw-{arm.name}", arm.command, (), output, arm.after, seconds))
        path = f"--config.train_sources.{config.source}.path={output.parent}"
        jobs += _classify(config, workdir, arm.name, config.classifier, (path,))
    # Classifiers of real images alone, for the report.
    return jobs + _classify(config, workdir, REAL, config.real, ())


def _classify(
    config: ml_collections.ConfigDict,
    workdir: Path,
    name: str,
    classifier: str,
    overrides: Sequence[str],
) -> list[Job]:
    run = workdir / "classifiers" / name
    command = ("classifiers.train", f"--config={classifier}", f"--workdir={run}", *overrides)
    command += tuple(f"--config.{override}" for override in config.get("overrides", ()))
    # Classifiers of real images wait for no set.
    manifest = (workdir / "sets" / name / _MANIFEST,) if overrides else ()
    after = (f"draw-{name}",) if overrides else ()
    evaluate = (f"--config={config.evaluation.config}", f"--workdir={run}")
    return [
        Job(f"train-{name}", command, manifest, run, after, 45.0),
        Job(
            f"evaluate-{name}",
            ("classifiers.evaluate", *evaluate),
            (),
            evaluation_path(config, workdir, name),
            (f"train-{name}",),
            5.0,
        ),
    ]


def evaluation_path(config: ml_collections.ConfigDict, workdir: Path, name: str) -> Path:
    """The file that the evaluation of an arm's classifiers writes."""
    return workdir / "classifiers" / name / f"evaluation_{config.evaluation.set}.json"
