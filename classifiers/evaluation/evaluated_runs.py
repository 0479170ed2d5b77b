"""The runs of an evaluation: which there are, and what their checkpoints hold."""

import dataclasses
from typing import Any

import ml_collections
from etils import epath

from classifiers import from_config
from launch.errors import InputError
from launch.runtime.ema import MAIN
from launch.runtime.run import CLASSIFIER, Run
from launch.runtime.types import Variables


@dataclasses.dataclass(frozen=True)
class EvaluatedRun:
    """A finished run of classifiers.train, or an import of classifiers.weights.

    Attributes:
        run: its directory.
        num_classes: of its checkpoints.
        class_names: their names, or None where the run has not kept them.
        best: whether the best step counts, and not the last one.
        ema: which moving average counts.
    """

    run: Run
    num_classes: int
    class_names: list[str] | None
    best: bool
    ema: str

    @property
    def path(self) -> epath.Path:
        """Its directory."""
        return self.run.path

    @property
    def config(self) -> ml_collections.ConfigDict:
        """What it was made with."""
        return self.run.config

    @property
    def name(self) -> str:
        """What its results are called."""
        return self.path.name

    @property
    def seeds(self) -> int:
        """Number of its seeds."""
        return self.config.seeds

    def shapes(self) -> dict[str, Any]:
        """Shapes of a seed's variables, as stored."""
        return self.run.seed(0).shapes()

    def digest(self, seed: int) -> str:
        """Digest of a seed's variables."""
        return self.run.seed(seed).digest(self.ema, self.best)

    def load(self, seed: int, abstract: Variables) -> dict[str, Any]:
        """A seed's variables.

        Args:
            seed: which.
            abstract: the shapes that they have to have.

        Raises:
            InputError: the checkpoint is damaged, or of another model.
        """
        return self.run.seed(seed).variables(abstract, self.ema, self.best)


def find_runs(folder: epath.Path) -> list[epath.Path]:
    """Run directories of classifiers.train in `folder`, or `folder` itself.

    Raises:
        InputError: there is none.
    """
    if (folder / "config.json").exists():
        return [folder]
    runs = sorted(path.parent for path in folder.glob("*/config.json")) if folder.exists() else []
    if not runs:
        raise InputError(
            f"{folder} holds no run of classifiers.train: train one, or name its folder"
        )
    return runs


def open_run(path: epath.Path, best: bool = False, ema: str = MAIN) -> EvaluatedRun:
    """Looks at a run; nothing is loaded.

    Raises:
        InputError: it is of another task, or a seed is missing or unfinished.
    """
    run = Run.open(path)
    if run.kind != CLASSIFIER:
        raise InputError(
            f"{path} is no run of classifiers.train: name a folder that holds only such"
        )
    for seed in map(run.seed, range(run.config.seeds)):
        seed.check_finished()
        seed.digest(ema, best)
    num_classes = run.seed(0).shapes()["params"]["head"]["bias"].shape[0]
    return EvaluatedRun(run, num_classes, from_config.load_class_names(path), best, ema)
