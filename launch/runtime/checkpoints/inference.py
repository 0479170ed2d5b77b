"""What is read of a folder of checkpoints: its newest step, and the variables for inference."""

import jax
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree

from launch.errors import InputError
from launch.runtime.checkpoints import orbax_options, seals
from launch.runtime.checkpoints.checkpoint import BEST, CHECKPOINTS, INFERENCE, absolute, item_name
from launch.runtime.ema import MAIN


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
    item = folder / item_name(_average(folder, ema))
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
    return seals.read_facts(folder)["content"][_average(folder, ema)]


def _average(folder: epath.Path, ema: str) -> str:
    averages = seals.read_facts(folder)["content"]
    if ema not in averages:
        raise InputError(f"{folder} has no average {ema!r}: there is {', '.join(sorted(averages))}")
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
