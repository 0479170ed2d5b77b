"""The runs of an evaluation: which there are, and what their checkpoints hold."""

import dataclasses
from typing import Any

import ml_collections
from etils import epath

from classifiers import from_config
from launch.errors import InputError
from launch.runtime import run
from launch.runtime.ema import MAIN
from launch.runtime.run import (
    check_finished,
    inference_shapes,
    load_inference,
    load_run_config,
)


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run of classifiers.train, or an import of classifiers.weights.

    Attributes:
        path: its directory.
        config: that it was made with.
        num_classes: of its checkpoints.
        class_names: their names, or None where the run has not kept them.
        best: whether the best step counts, and not the last one.
        ema: which moving average counts.
    """

    path: epath.Path
    config: ml_collections.ConfigDict
    num_classes: int
    class_names: list[str] | None
    best: bool
    ema: str

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
        return inference_shapes(_folder(self.path, 0))

    def digest(self, seed: int) -> str:
        """Digest of a seed's variables."""
        return run.digest(_folder(self.path, seed), self.ema, self.best)

    def load(self, seed: int, abstract: dict[str, Any]) -> dict[str, Any]:
        """A seed's variables.

        Args:
            seed: which.
            abstract: the shapes that they have to have.

        Raises:
            InputError: the checkpoint is damaged, or of another model.
        """
        folder = _folder(self.path, seed)
        return load_inference(folder, abstract, self.config.total_steps, self.ema, self.best)


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


def open_run(path: epath.Path, best: bool = False, ema: str = MAIN) -> Run:
    """Looks at a run; nothing is loaded.

    Raises:
        InputError: it is of another task, or a seed is missing or unfinished.
    """
    config = load_run_config(path)
    if "model" not in config or "seeds" not in config:
        raise InputError(
            f"{path} is no run of classifiers.train: name a folder that holds only such"
        )
    for seed in range(config.seeds):
        folder = _folder(path, seed)
        check_finished(folder, config.total_steps)
        run.digest(folder, ema, best)
    shapes = inference_shapes(_folder(path, 0))
    num_classes = shapes["params"]["head"]["bias"].shape[0]
    return Run(path, config, num_classes, from_config.load_class_names(path), best, ema)


def _folder(path: epath.Path, seed: int) -> epath.Path:
    return path / f"seed_{seed}"
