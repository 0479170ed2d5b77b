"""Finished runs: their configs, newest checkpoints and variables."""

import dataclasses
import functools

import jax
import ml_collections
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree

from launch.errors import InputError
from launch.files import read_json
from launch.runtime.checkpoints import orbax_options, seals
from launch.runtime.checkpoints.checkpoint import BEST, CHECKPOINTS, INFERENCE, absolute, item_name
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
        return cls(path, load_run_config(path), path)

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
        return latest_step(self.folder)

    def seed(self, number: int) -> "Run":
        """One of several seeds."""
        return dataclasses.replace(self, folder=self.path / f"seed_{number}")

    def check_finished(self) -> None:
        """See `check_finished`."""
        check_finished(self.folder, self.config.total_steps)

    def shapes(self) -> PyTree:
        """See `inference_shapes`."""
        return inference_shapes(self.folder)

    def variables(self, abstract: PyTree, ema: str = MAIN, best: bool = False) -> PyTree:
        """See `load_inference`."""
        return load_inference(self.folder, abstract, self.config.total_steps, ema, best)

    def digest(self, ema: str = MAIN, best: bool = False) -> str:
        """See `digest`."""
        return digest(self.folder, ema, best)


def latest_step(workdir: epath.Path | str) -> int | None:
    """Step of the newest sealed checkpoint of a run; None when there is none."""
    return _latest(epath.Path(workdir) / CHECKPOINTS)


def check_finished(workdir: epath.Path | str, total_steps: int) -> None:
    """Looks whether a run has come to its end.

    Raises:
        InputError: it has not, or has no checkpoint.
    """
    last = int(_newest(workdir).name)
    if last < total_steps:
        raise InputError(
            f"{workdir} has come to step {last} of {total_steps}: finish its training first"
        )


def load_inference(
    workdir: epath.Path | str,
    abstract: PyTree,
    total_steps: int,
    ema: str = MAIN,
    best: bool = False,
) -> PyTree:
    """Restores the inference variables of a finished run.

    Args:
        workdir: the run directory.
        abstract: their shapes, and shardings where they shall be sharded.
        total_steps: length of the run.
        ema: which moving average; `main` is the variables themselves where none is kept.
        best: those of the best step, not of the last one.

    Raises:
        InputError: no checkpoint, a damaged one, one of another model, no such average, or the run
            is not finished.
    """
    check_finished(workdir, total_steps)
    folder = _newest(workdir, best)
    fault = seals.find_fault_together(folder)
    if fault is not None:
        raise InputError(f"{fault}: remove {folder} and run the training command again")
    item = folder / item_name(_known(folder, ema))
    orbax_options.check_fit(item, abstract)
    return orbax_options.restore(item, abstract)


def inference_shapes(workdir: epath.Path | str) -> PyTree:
    """Shapes and types of a run's newest inference variables, as they are stored.

    Raises:
        InputError: there is no sealed checkpoint.
    """
    metadata = ocp.StandardCheckpointHandler().metadata(_newest(workdir) / INFERENCE)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
        dict(metadata),
        is_leaf=lambda leaf: hasattr(leaf, "shape"),
    )


def digest(workdir: epath.Path | str, ema: str = MAIN, best: bool = False) -> str:
    """Digest of a run's inference variables: equal values have equal digests, however sharded.

    Args:
        workdir: the run directory.
        ema: which moving average.
        best: those of the best step, not of the newest one.

    Raises:
        InputError: there is no sealed checkpoint, its seal is damaged, or has no such average.
    """
    folder = _newest(workdir, best)
    return seals.read_facts(folder)["content"][_known(folder, ema)]


def _known(folder: epath.Path, ema: str) -> str:
    known = seals.read_facts(folder)["content"]
    if ema not in known:
        raise InputError(f"{folder} has no average {ema!r}: there is {', '.join(sorted(known))}")
    return ema


def _newest(workdir: epath.Path | str, best: bool = False) -> epath.Path:
    folder = absolute(workdir) / (BEST if best else CHECKPOINTS)
    step = _latest(folder)
    if step is None and best:
        raise InputError(f"{folder} holds no checkpoint: train with config.best, or use the last")
    if step is None:
        raise InputError(f"{workdir} holds no finished checkpoint: train it first")
    return folder / str(step)


def _latest(folder: epath.Path) -> int | None:
    paths = folder.iterdir() if folder.exists() else ()
    steps = (int(path.name) for path in paths if path.name.isdecimal() and seals.is_sealed(path))
    return max(steps, default=None)


def load_run_config(workdir: epath.Path | str) -> ml_collections.ConfigDict:
    """Reads the config that a run directory was made with.

    Raises:
        InputError: there is no such run.
    """
    path = epath.Path(workdir) / "config.json"
    if not path.exists():
        raise InputError(f"{workdir} holds no run (no config.json): train it first")
    return ml_collections.ConfigDict(read_json(path))
