"""Finished runs: their configs, newest checkpoints and variables."""

import dataclasses
import functools

import ml_collections
from etils import epath
from jaxtyping import PyTree

from launch.errors import InputError
from launch.fields import Fields
from launch.runtime.checkpoints.inference import SealedCheckpoint
from launch.runtime.ema import MAIN
from launch.runtime.run_record import CONFIG, read_record, seed_name

STAGE, CLASSIFIER, CLIP, IMPORT = "stage", "classifier", "clip", "import"


def kind_of(config: Fields) -> str:
    """Whose config it is: `STAGE`, `CLASSIFIER`, `CLIP`, or `IMPORT` for all else."""
    if "stage" in config:
        return STAGE
    if "clip" in config:
        return CLIP
    return CLASSIFIER if "model" in config and "seeds" in config else IMPORT


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory; its config, its inputs and which checkpoint is its newest are read once.

    Attributes:
        path: the directory.
        config: that it was made with.
        inputs: digests of what it was made from, by name.
        run_name: what its checkpoints call it, see `run_record`.
        folder: where its checkpoints are: `path`, or that of one of several seeds.
    """

    path: epath.Path
    config: ml_collections.ConfigDict
    inputs: dict[str, str]
    run_name: str
    folder: epath.Path

    @classmethod
    def open(cls, path: epath.PathLike) -> "Run":
        """Reads a run's config.

        Raises:
            InputError: there is no such run, or what it says of itself is damaged.
        """
        path = epath.Path(path)
        if not (path / CONFIG).exists():
            raise InputError(f"{path} is not a run (it has no {CONFIG}); train it first")
        config, inputs, run_name = read_record(path)
        return cls(path, ml_collections.ConfigDict(config), inputs, run_name, path)

    @property
    def kind(self) -> str:
        """Whose run it is: `STAGE`, `CLASSIFIER`, `CLIP`, or `IMPORT` for other weights."""
        return kind_of(self.config)

    @functools.cached_property
    def newest(self) -> SealedCheckpoint:
        """The newest sealed checkpoint, when it is first asked for.

        Raises:
            InputError: there is none.
        """
        return SealedCheckpoint.find(self.folder, self.run_name)

    @property
    def step(self) -> int | None:
        """Of `newest`; None when there is none."""
        try:
            return self.newest.step
        except InputError:
            return None

    @functools.cached_property
    def best(self) -> SealedCheckpoint:
        """The one that evaluated best; see `newest`."""
        return SealedCheckpoint.find(self.folder, self.run_name, best=True)

    @functools.cached_property
    def seeds(self) -> tuple["Run", ...]:
        """Each of the `config.seeds` that were trained; what is read of one is kept with it."""
        names = (f"seed_{number}" for number in range(self.config.seeds))
        return tuple(
            dataclasses.replace(
                self, folder=self.path / name, run_name=seed_name(self.run_name, name)
            )
            for name in names
        )

    def check_finished(self) -> None:
        """Looks whether it has come to its end.

        Raises:
            InputError: it has not, or has no checkpoint.
        """
        step, total_steps = self.newest.step, self.config.total_steps
        if step < total_steps:
            raise InputError(
                f"{self.folder} is at step {step} of {total_steps}; finish its training first"
            )

    def shapes(self) -> PyTree:
        """Shapes and types of its newest inference variables, as they are stored.

        Raises:
            InputError: there is no checkpoint.
        """
        return self.newest.shapes()

    def variables(self, abstract: PyTree, ema: str = MAIN, best: bool = False) -> PyTree:
        """The inference variables of the finished run.

        Args:
            abstract: their shapes, and shardings where they shall be sharded.
            ema: which moving average; `main` is the variables themselves where none is kept.
            best: those of the best step, not of the last one.

        Raises:
            InputError: no checkpoint, a damaged one, one of another model, no such average, or the
                run is not finished.
        """
        self.check_finished()
        return (self.best if best else self.newest).variables(abstract, ema)

    def digest(self, ema: str = MAIN, best: bool = False) -> str:
        """Of the values of the inference variables; see `variables`.

        Raises:
            InputError: no checkpoint, a damaged seal, or no such average.
        """
        return (self.best if best else self.newest).digest(ema)
