"""Which runs a study needs, and the command lines that make them.

cas and per_class need real and synthetic images, each alone; models also both together; scaling the
real ones with 0, 1, 2, ... times as many synthetic ones; filters both together, with all synthetic
images, with those that a filter keeps, and with a random part of the same size. A run that several
studies need is made once.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import ml_collections
from etils import epath

from classifiers import train
from launch.errors import InputError
from launch.fields import Fields
from launch.files import json_digest
from launch.jobs.runner import Job
from launch.runtime import app
from launch.runtime.config import load_config, plain

STUDIES = ("cas", "scaling", "models", "per_class", "filters")
# Files of imagen_ft.filter: records to keep, and as many drawn at random.
KEPT, RANDOM = "kept", "random"
# Time of an evaluation as a share of the training's, for the progress of all jobs.
_EVALUATION_SHARE = 0.05


@dataclasses.dataclass(frozen=True)
class Arm:
    """What is trained on."""

    real: bool  # whether there are real images
    copies: int  # synthetic images per real one; 0 for none
    filtered: str = ""  # the filter whose list of synthetic images is taken; '' for none
    part: str = ""  # of that filter, `KEPT` or `RANDOM`

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        parts = [self._kind, f"{self.copies}x" if self.copies else "", self.filtered, self.part]
        return "_".join(filter(None, parts))

    @property
    def arguments(self) -> str:
        """Arguments of the config of classifiers.train."""
        return f"arm={self._kind}" + (f",k={self.copies}" if self.copies else "")

    @property
    def _kind(self) -> str:
        kinds = ("real",) * self.real + ("synthetic",) * bool(self.copies)
        return "+".join(kinds)


REAL = Arm(real=True, copies=0)


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """A run of classifiers.train."""

    model: str  # its label in the study's config
    arm: Arm
    folder: Path  # its run directory
    command: tuple[str, ...]  # arguments behind `python -m`
    config: ml_collections.ConfigDict  # what they resolve to
    start: str  # model whose run of the same arm it starts from; '' for new weights

    @property
    def job_name(self) -> str:
        """The name of its training among the jobs."""
        return f"train-{self.model}-{self.arm.name}"


def arms_of(config: ml_collections.ConfigDict, study: str) -> tuple[Arm, ...]:
    """The arms that each model of a study is trained on."""
    if study == "scaling":
        return tuple(Arm(True, copies) for copies in config.scaling_copies)
    synthetic, both = Arm(False, config.copies), Arm(True, config.copies)
    if study == "filters":
        parts = [(name, part) for name in config.filters for part in (KEPT, RANDOM)]
        return (REAL, both, *(Arm(True, config.copies, *names) for names in parts))
    return (REAL, synthetic, both) if study == "models" else (REAL, synthetic)


def check(config: ml_collections.ConfigDict) -> None:
    """Raises InputError for numbers and names of a study that make no sense."""
    if not config.studies:
        raise InputError(f"config.studies is empty; choose some of {', '.join(STUDIES)}")
    for study in config.studies:
        if study not in STUDIES:
            raise InputError(f"config.studies must be some of {', '.join(STUDIES)}, got {study!r}")
        if not config.models_of.get(study):
            raise InputError(f"config.models_of.{study} is empty; choose some of config.models")
        for label in config.models_of[study]:
            if label not in config.models:
                labels = ", ".join(config.models)
                raise InputError(
                    f"config.models_of.{study} must be some of {labels}, got {label!r}"
                )
            if not re.fullmatch(r"[\w.@+-]+", label):
                raise InputError(
                    f"config.models: {label!r} cannot be a folder name; use letters and digits"
                )
            if not config.models[label].get("config"):
                raise InputError(f"config.models.{label} has no config; set it to a config file")
    if "filters" in config.studies:
        _check_filters(config.get("filters") or {})
    copies = tuple(config.scaling_copies)
    if any(type(k) is not int or k < 0 for k in copies) or sorted(set(copies)) != list(copies):
        raise InputError(
            f"config.scaling_copies must be increasing whole numbers from 0, got {copies}"
        )
    if "scaling" in config.studies and (len(copies) < 2 or copies[0]):
        raise InputError(
            "config.scaling_copies must be 0 (real only) and at least one other number, got "
            f"{copies}"
        )
    if config.copies < 1:
        raise InputError(f"config.copies must be at least 1, got {config.copies}")
    if config.seeds < 0:
        raise InputError(
            "config.seeds must be a number of seeds, or 0 for those of the models' configs, got "
            f"{config.seeds}"
        )


def _check_filters(folders: Fields) -> None:
    if not folders:
        raise InputError(
            "config.filters must list folders of imagen_ft.filter for the study 'filters', got "
            "none; add NAME=FOLDER, or leave the study out"
        )
    for name, folder in folders.items():
        if not re.fullmatch(r"[\w.@+-]+", name):
            raise InputError(
                f"config.filters: {name!r} cannot be a folder name; use letters and digits"
            )
        if not isinstance(folder, str) or not folder:
            raise InputError(f"config.filters.{name} must be a folder, got {folder!r}")


def make_runs(config: ml_collections.ConfigDict, workdir: Path) -> list[PlannedRun]:
    """All runs that the studies need, each once; nothing is written.

    Raises:
        InputError: the study's config is wrong, or that of a model.
    """
    # 1. What the studies ask for.
    check(config)
    pairs = [
        (model, arm)
        for study in config.studies
        for model in config.models_of[study]
        for arm in arms_of(config, study)
    ]
    # 2. What these start from: the list grows while it is read, for a start may have a start.
    for model, arm in pairs:
        start = _start(config, model)
        if start and (start, arm) not in pairs:
            pairs.append((start, arm))
    # 3. Each once, by model, real images first.
    labels = list(dict.fromkeys(model for model, _ in pairs))
    order = sorted(
        set(pairs),
        key=lambda pair: (labels.index(pair[0]), not pair[1].real, *dataclasses.astuple(pair[1])),
    )
    return [_run(config, workdir, model, arm) for model, arm in order]


def _start(config: ml_collections.ConfigDict, label: str) -> str:
    """The model that a model starts from, or ''; raises InputError for a circle."""
    chain = [label]
    while start := config.models[chain[-1]].get("init_from", ""):
        if start not in config.models or start in chain:
            raise InputError(
                f"config.models.{chain[-1]}.init_from must be another of config.models, one that "
                f"does not start from this one, or '', got {start!r}"
            )
        chain.append(start)
    return chain[1] if len(chain) > 1 else ""


def _run(config: ml_collections.ConfigDict, workdir: Path, label: str, arm: Arm) -> PlannedRun:
    # 1. The arguments of the config, and the overrides: the study's, then the model's.
    model = config.models[label]
    file, _, arguments = model.config.partition(":")
    arguments = ",".join(filter(None, (arguments, arm.arguments)))
    start, runs = _start(config, label), workdir / "runs"
    folder = runs / label / arm.name
    overrides = [*config.overrides, *model.get("overrides", ())]
    if config.seeds:
        overrides.append(f"seeds={config.seeds}")
    if config.synthetic and arm.copies:
        overrides.append(f"train_sources.synthetic.path={config.synthetic}")
    if arm.filtered:
        overrides.append(f"train_sources.synthetic.keep={_list_of(config, arm)}")
    if start:
        overrides.append(f"init_from={runs / start / arm.name}")
    # 2. Resolve them as the command itself will, so that a wrong field ends the study now.
    argv = (
        f"--config={file}:{arguments}",
        f"--workdir={folder}",
        *(f"--config.{override}" for override in overrides),
    )
    try:
        resolved = app.parse(["classifiers.train", *argv], lacking=train.lacking).config
    except InputError as error:
        raise InputError(f"config.models.{label}: {error}") from None
    run = PlannedRun(label, arm, folder, ("classifiers.train", *argv), resolved, start)
    _check_resolved(run, model.config)
    return run


def _list_of(config: ml_collections.ConfigDict, arm: Arm) -> epath.Path:
    """The file of records that an arm takes."""
    return epath.Path(config.filters[arm.filtered]) / f"{arm.part}.json"


def _check_resolved(run: PlannedRun, name: str) -> None:
    """Raises InputError where a config does not do what its arguments say."""
    missing = [f for f in ("train_sources", "seeds", "total_steps") if f not in run.config]
    if missing:
        raise InputError(
            f"config.models.{run.model}: {name} is not a config of classifiers.train (it "
            f"has no {missing[0]!r})"
        )
    specs = run.config.train_sources.values()
    copies = [spec.get("copies") for spec in specs if spec.get("name") == "synthetic"]
    if copies != [run.arm.copies] * bool(run.arm.copies):  # [] for none
        raise InputError(
            f"config.models.{run.model}: {run.arm.arguments} of {name} must have a "
            f"synthetic set with {run.arm.copies} copies, got {copies}"
        )


def make_jobs(config: ml_collections.ConfigDict, runs: Sequence[PlannedRun]) -> list[Job]:
    """A training and an evaluation for each run.

    Raises:
        InputError: the evaluation's config cannot be read.
    """
    trainings = {(run.model, run.arm): run.job_name for run in runs}
    evaluation = json_digest(plain(load_config(config.evaluation.config)))
    jobs = []
    for run in runs:
        seeds, total_steps = run.config.seeds, run.config.total_steps
        # A job is done when its last file is there and its config has not changed.
        last = run.folder / f"seed_{seeds - 1}" / "checkpoints" / str(total_steps)
        # Images seen: its rough duration beside the others, for the progress bar.
        weight = float(seeds * total_steps * run.config.batch_size)
        digest = json_digest(plain(run.config))
        # Files that it reads: a changed one makes it run again.
        needed = tuple(path / "manifest.json" for path in _synthetic_sets(run))
        if run.arm.filtered:
            needed += (_list_of(config, run.arm),)
        after = (trainings[run.start, run.arm],) if run.start else ()  # starts from it
        jobs.append(Job(run.job_name, run.command, needed, last, after, weight, digest))
        argv = (f"--config={config.evaluation.config}", f"--workdir={run.folder}")
        # Its evaluation waits for this training only.
        command, weight = ("classifiers.evaluate", *argv), _EVALUATION_SHARE * weight
        name, path = run.job_name.replace("train", "evaluate", 1), evaluation_path(config, run)
        jobs.append(Job(name, command, (), path, (run.job_name,), weight, evaluation))
    return jobs


def evaluation_path(config: ml_collections.ConfigDict, run: PlannedRun) -> Path:
    """The file that the evaluation of a run writes."""
    return run.folder / f"evaluation_{config.evaluation.set}.json"


def _synthetic_sets(run: PlannedRun) -> list[epath.Path]:
    specs = run.config.train_sources.values()
    return [epath.Path(spec.path) for spec in specs if spec.get("name") == "synthetic"]
