"""The runs of an evaluation: where they are, and what their checkpoints hold."""

import dataclasses
from typing import Any

from etils import epath

from classifiers import from_config
from launch.errors import InputError
from launch.runtime.ema import MAIN
from launch.runtime.run import CLASSIFIER, Run


@dataclasses.dataclass(frozen=True)
class EvaluatedRun(Run):
    """A finished run of classifiers.train, or an import of classifiers.weights."""

    num_classes: int
    class_names: list[str] | None  # None where the run has not kept them
    # Which weights count: `ema`, the name of a moving average, and `best`, whether those of the
    # best step instead of the last.
    checkpoint: dict[str, Any]

    @property
    def name(self) -> str:
        """What its results are called."""
        return self.path.name


def find_runs(folder: epath.Path) -> list[epath.Path]:
    """Runs of classifiers.train in `folder`, or itself; raises InputError if there is none."""
    if (folder / "config.json").exists():
        return [folder]
    runs = sorted(path.parent for path in folder.glob("*/config.json")) if folder.exists() else []
    if not runs:
        raise InputError(f"{folder} has no run of classifiers.train; train one, or use its folder")
    return runs


def open_run(path: epath.Path, best: bool = False, ema: str = MAIN) -> EvaluatedRun:
    """Opens a run without loading its weights.

    Raises:
        InputError: it is of another task, or a seed is missing or unfinished.
    """
    run = Run.open(path)
    if run.kind != CLASSIFIER:
        raise InputError(
            f"{path} is not a run of classifiers.train; use a folder that has only such runs"
        )
    num_classes = run.seeds[0].shapes()["params"]["head"]["bias"].shape[0]
    names = from_config.load_class_names(path)
    checkpoint: dict[str, Any] = dict(ema=ema, best=best)
    fields = {field.name: getattr(run, field.name) for field in dataclasses.fields(run)}
    evaluated = EvaluatedRun(
        **fields, num_classes=num_classes, class_names=names, checkpoint=checkpoint
    )
    for seed in evaluated.seeds:
        seed.check_finished()
        # Raises for a damaged seal now, before anything is evaluated.
        seed.digest(**checkpoint)
    return evaluated
