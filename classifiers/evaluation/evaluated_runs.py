"""The runs of an evaluation: which there are, and what their checkpoints hold."""

import dataclasses
from typing import Any

from etils import epath

from classifiers import from_config
from launch.errors import InputError
from launch.runtime.ema import MAIN
from launch.runtime.run import CLASSIFIER, Run


@dataclasses.dataclass(frozen=True)
class EvaluatedRun(Run):
    """A finished run of classifiers.train, or an import of classifiers.weights.

    Attributes:
        num_classes: of its checkpoints.
        class_names: their names, or None where the run has not kept them.
        checkpoint: which of a seed's weights count: `ema`, the moving average, and whether `best`,
            those of the best step and not of the last one.
    """

    num_classes: int
    class_names: list[str] | None
    checkpoint: dict[str, Any]

    @property
    def name(self) -> str:
        """What its results are called."""
        return self.path.name


def find_runs(folder: epath.Path) -> list[epath.Path]:
    """Run directories of classifiers.train in `folder`, or `folder` itself.

    Raises:
        InputError: there is none.
    """
    if (folder / "config.json").exists():
        return [folder]
    runs = sorted(path.parent for path in folder.glob("*/config.json")) if folder.exists() else []
    if not runs:
        raise InputError(f"{folder} has no run of classifiers.train; train one, or name its folder")
    return runs


def open_run(path: epath.Path, best: bool = False, ema: str = MAIN) -> EvaluatedRun:
    """Looks at a run; nothing is loaded.

    Raises:
        InputError: it is of another task, or a seed is missing or unfinished.
    """
    run = Run.open(path)
    if run.kind != CLASSIFIER:
        raise InputError(
            f"{path} is not a run of classifiers.train; name a folder that has only such runs"
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
        seed.digest(**checkpoint)
    return evaluated
