"""Run directories opened for reading: config, newest and best checkpoints, variables."""

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
    """The kind of run a config is of: `STAGE`, `CLASSIFIER`, `CLIP`, or `IMPORT` for the rest."""
    if "stage" in config:
        return STAGE
    if "clip" in config:
        return CLIP
    return CLASSIFIER if "model" in config and "seeds" in config else IMPORT


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory; its config, its inputs and which checkpoint is newest are read once."""

    path: epath.Path
    config: ml_collections.ConfigDict
    inputs: dict[str, str]  # checksums of what it was made from, by name
    run_name: str  # carried by its checkpoints
    folder: epath.Path  # of its checkpoints: `path`, or that of one seed in it

    @classmethod
    def open(cls, path: epath.PathLike) -> "Run":
        """Reads a run's record; raises `InputError` if there is none or it is damaged."""
        path = epath.Path(path)
        if not (path / CONFIG).exists():
            raise InputError(
                f"{path} is not a run (it has no {CONFIG}); check the path, or train it first"
            )
        config, inputs, run_name = read_record(path)
        return cls(path, ml_collections.ConfigDict(config), inputs, run_name, path)

    @property
    def kind(self) -> str:
        """`STAGE`, `CLASSIFIER`, `CLIP`, or `IMPORT` for imported weights."""
        return kind_of(self.config)

    @functools.cached_property
    def newest(self) -> SealedCheckpoint:
        """The newest sealed checkpoint, looked up once; raises `InputError` if there is none."""
        return SealedCheckpoint.find(self.folder, self.run_name)

    @property
    def step(self) -> int | None:
        """The step of `newest`, or None without a checkpoint."""
        try:
            return self.newest.step
        except InputError:
            return None

    @functools.cached_property
    def best(self) -> SealedCheckpoint:
        """The checkpoint that evaluated best; raises `InputError` if there is none."""
        return SealedCheckpoint.find(self.folder, self.run_name, best=True)

    @functools.cached_property
    def seeds(self) -> tuple["Run", ...]:
        """One `Run` for each of `config.seeds`, kept so that what they cache is cached once."""
        names = (f"seed_{number}" for number in range(self.config.seeds))
        return tuple(
            dataclasses.replace(
                self, folder=self.path / name, run_name=seed_name(self.run_name, name)
            )
            for name in names
        )

    def check_finished(self) -> None:
        """Raises `InputError` if the run has no checkpoint or is not at `config.total_steps`."""
        step, total_steps = self.newest.step, self.config.total_steps
        if step < total_steps:
            raise InputError(
                f"{self.folder} is at step {step} of {total_steps}; finish its training first"
            )

    def shapes(self) -> PyTree:
        """Shapes and types of the newest inference variables, as stored."""
        return self.newest.shapes()

    def variables(self, abstract: PyTree, ema: str = MAIN, best: bool = False) -> PyTree:
        """Restores the inference variables of the finished run, with the shardings of `abstract`.

        `ema` names a moving average; `main` is the variables themselves if none is kept. Raises
        `InputError` if the run is not finished, the checkpoint is missing, damaged or of another
        model, or there is no such average.
        """
        self.check_finished()
        return (self.best if best else self.newest).variables(abstract, ema)

    def digest(self, ema: str = MAIN, best: bool = False) -> str:
        """Checksum of the values that `variables` would return, read from the seal alone."""
        return (self.best if best else self.newest).digest(ema)
