"""Finished runs: their configs, newest checkpoints and variables."""

import dataclasses
import functools

import ml_collections
from etils import epath
from jaxtyping import PyTree

from launch.errors import InputError
from launch.files import read_json
from launch.runtime.checkpoints import inference
from launch.runtime.ema import MAIN

STAGE, CLASSIFIER, IMPORT = "stage", "classifier", "import"


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory, whose config is read once.

    Attributes:
        path: the directory.
        config: that it was made with.
        folder: where its checkpoints are: `path`, or that of one of several seeds.
    """

    path: epath.Path
    config: ml_collections.ConfigDict
    folder: epath.Path

    @classmethod
    def open(cls, path: epath.PathLike) -> "Run":
        """Reads a run's config.

        Raises:
            InputError: there is no such run.
        """
        path = epath.Path(path)
        config = path / "config.json"
        if not config.exists():
            raise InputError(f"{path} holds no run (no config.json): train it first")
        return cls(path, ml_collections.ConfigDict(read_json(config)), path)

    @property
    def kind(self) -> str:
        """Whose run it is: `STAGE`, `CLASSIFIER`, or `IMPORT` for other weights."""
        if "stage" in self.config:
            return STAGE
        return CLASSIFIER if "model" in self.config and "seeds" in self.config else IMPORT

    @functools.cached_property
    def inputs(self) -> dict[str, str]:
        """Digests of what it was made from, by name."""
        return read_json(self.path / "inputs.json")

    @property
    def step(self) -> int | None:
        """Of the newest sealed checkpoint; None when there is none."""
        return inference.latest_step(self.folder)

    def seed(self, number: int) -> "Run":
        """One of several seeds."""
        return dataclasses.replace(self, folder=self.path / f"seed_{number}")

    def check_finished(self) -> None:
        """Looks whether it has come to its end, see `inference.check_finished`."""
        inference.check_finished(self.folder, self.config.total_steps)

    def shapes(self) -> PyTree:
        """Shapes of its variables as they are stored, see `inference.inference_shapes`."""
        return inference.inference_shapes(self.folder)

    def variables(self, abstract: PyTree, ema: str = MAIN, best: bool = False) -> PyTree:
        """The variables of the finished run, see `inference.load_inference`."""
        return inference.load_inference(self.folder, abstract, self.config.total_steps, ema, best)

    def digest(self, ema: str = MAIN, best: bool = False) -> str:
        """Of the variables' values, see `inference.digest`."""
        return inference.digest(self.folder, ema, best)
