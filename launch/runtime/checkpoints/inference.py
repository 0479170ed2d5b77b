"""What is read of a folder of checkpoints: its newest step, and the variables for inference."""

import dataclasses
import functools
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree

from launch.errors import InputError
from launch.runtime.checkpoints import orbax_options, seals
from launch.runtime.checkpoints.checkpoint import BEST, CHECKPOINTS, INFERENCE, absolute, item_name
from launch.runtime.checkpoints.sealed_steps import identity, steps_in
from launch.runtime.ema import MAIN


def latest_step(workdir: epath.PathLike) -> int | None:
    """Step of the newest sealed checkpoint of a run; None when there is none."""
    return _latest(epath.Path(workdir) / CHECKPOINTS)


@dataclasses.dataclass(frozen=True)
class SealedCheckpoint:
    """A checkpoint that was saved to its end.

    Attributes:
        folder: its own; its name is the step.
        run_name: of the run that it has to be of, see `run_record`.
    """

    folder: epath.Path
    run_name: str

    @classmethod
    def find(cls, workdir: epath.PathLike, run_name: str, best: bool = False) -> "SealedCheckpoint":
        """The newest one of a run, or its best one.

        Args:
            workdir: the run directory, or that of a seed.
            run_name: of the run, or of the seed in it.
            best: the best and not the newest one.

        Raises:
            InputError: there is none.
        """
        folder = absolute(workdir) / (BEST if best else CHECKPOINTS)
        step = _latest(folder)
        if step is None and best:
            raise InputError(
                f"{folder} has no best checkpoint; train with config.best, or use the last one"
            )
        if step is None:
            raise InputError(f"{workdir} has no checkpoint; train it first")
        return cls(folder / str(step), run_name)

    @property
    def step(self) -> int:
        """Number of updates behind it."""
        return int(self.folder.name)

    @functools.cached_property
    def digests(self) -> dict[str, str]:
        """Of the variables of each moving average: equal values have equal ones, however sharded.

        Raises:
            InputError: the seal is damaged, or of another step or run.
        """
        facts = seals.read_facts(self.folder)
        seals.check_facts(facts, self._identity, self.folder)
        return facts["content"]

    def digest(self, ema: str = MAIN) -> str:
        """Digest of one moving average; `main` is the variables themselves where none is kept.

        Raises:
            InputError: there is no such average, or the seal is damaged.
        """
        if ema not in self.digests:
            names = ", ".join(sorted(self.digests))
            raise InputError(f"ema must be one of {names}, got {ema!r} ({self.folder})")
        return self.digests[ema]

    def shapes(self) -> PyTree:
        """Shapes and types of the inference variables, as they are stored.

        Raises:
            InputError: see `digests`.
        """
        self.digest()
        try:
            metadata = ocp.StandardCheckpointHandler().metadata(self.folder / INFERENCE)
        except Exception:  # Orbax raises many kinds over damaged files.
            fault = seals.find_fault(self.folder, expected_facts=self._identity)
            if fault is None:
                raise
            raise InputError(fault) from None
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
            dict(metadata),
            is_leaf=lambda leaf: hasattr(leaf, "shape"),
        )

    def variables(self, abstract: PyTree, ema: str = MAIN) -> PyTree:
        """Restores one moving average.

        Args:
            abstract: shapes of the variables, and shardings where they shall be sharded.
            ema: see `digest`.

        Raises:
            InputError: it is damaged, of another model, or has no such average.
        """
        fault = seals.find_fault_together(self.folder, self._identity)
        if fault is not None:
            raise InputError(f"{fault}; remove {self.folder} and run the training command again")
        self.digest(ema)
        item = self.folder / item_name(ema)
        orbax_options.check_fit(item, abstract)
        return orbax_options.restore(item, abstract)

    @property
    def _identity(self) -> dict[str, Any]:
        return identity(self.folder.parent, self.run_name, self.step)


def _latest(folder: epath.Path) -> int | None:
    steps = steps_in(folder)
    return max((n for n in steps if not seals.is_cut_off(folder / str(n))), default=None)
