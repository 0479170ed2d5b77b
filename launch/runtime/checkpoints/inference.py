"""Reads a folder of checkpoints: its newest step, and the variables for inference."""

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
    """Step of a run's newest sealed checkpoint; None without one."""
    return _latest(epath.Path(workdir) / CHECKPOINTS)


@dataclasses.dataclass(frozen=True)
class SealedCheckpoint:
    """A complete checkpoint: a folder named by its step, of the run `run_name`."""

    folder: epath.Path
    run_name: str

    @classmethod
    def find(cls, workdir: epath.PathLike, run_name: str, best: bool = False) -> "SealedCheckpoint":
        """The newest checkpoint of a run (or a seed), or the best; `InputError` without one."""
        folder = absolute(workdir) / (BEST if best else CHECKPOINTS)
        step = _latest(folder)
        if step is None and best:
            raise InputError(
                f"{folder} has no best checkpoint; train with config.best, or use the last "
                "checkpoint"
            )
        if step is None:
            raise InputError(f"{workdir} has no checkpoint; train it first")
        return cls(folder / str(step), run_name)

    @property
    def step(self) -> int:
        """Number of updates made."""
        return int(self.folder.name)

    @functools.cached_property
    def digests(self) -> dict[str, str]:
        """Checksums of each moving average's variables; equal values have equal ones.

        Raises `InputError` if the seal is damaged, or belongs to another step or run.
        """
        facts = seals.read_facts(self.folder)
        seals.check_facts(facts, self._identity, self.folder)
        return facts["content"]

    def digest(self, ema: str = MAIN) -> str:
        """Checksum of one moving average; `main` is the variables themselves if none is kept.

        Raises `InputError` if there is no such average or the seal is damaged.
        """
        if ema not in self.digests:
            names = ", ".join(sorted(self.digests))
            raise InputError(f"ema must be one of {names}, got {ema!r} ({self.folder})")
        return self.digests[ema]

    def shapes(self) -> PyTree:
        """Shapes and types of the stored inference variables; `InputError` if damaged."""
        # The seal's own checksum is checked first; its files only if Orbax cannot read them.
        self.digest()
        try:
            metadata = ocp.StandardCheckpointHandler().metadata(self.folder / INFERENCE)
        except Exception:  # Orbax raises many types over damaged files
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
        """Restores one moving average, with the shapes and the shardings of `abstract`.

        Raises `InputError` if it is damaged, does not exist, or is of another model.
        """
        # 1. Check every file, each process a part of them.
        fault = seals.find_fault_together(self.folder, self._identity)
        if fault is not None:
            raise InputError(f"{fault}; remove {self.folder} and run the training command again")
        # 2. Check that the average exists and fits the model, for a message that names the array.
        self.digest(ema)
        item = self.folder / item_name(ema)
        orbax_options.check_fit(item, abstract)
        # 3. Read it.
        return orbax_options.restore(item, abstract)

    @property
    def _identity(self) -> dict[str, Any]:
        return identity(self.folder.parent, self.run_name, self.step)


def _latest(folder: epath.Path) -> int | None:
    # An incomplete checkpoint may be a save under way.
    steps = steps_in(folder)
    return max((n for n in steps if not seals.is_cut_off(folder / str(n))), default=None)
