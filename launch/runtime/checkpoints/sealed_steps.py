"""Steps that are saved in the background and count once they are sealed."""

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree

from launch.cli import say
from launch.errors import Failed, InputError, Unreachable, store_failure, users_error
from launch.files import is_local, naming
from launch.folders import entries, move
from launch.runtime.checkpoints import seals
from launch.runtime.checkpoints.orbax_options import (
    find_gap,
    raise_only,
    save_args,
    saving_handlers,
)
from launch.runtime.devices.distributed import (
    agree,
    from_first_process,
    gather_texts,
    on_first_process,
)

Facts = Callable[[], Mapping[str, Any]]
# As Orbax writes them: 0024 would parse as 24, a folder that does not exist.
_STEP_NAME = re.compile("0|[1-9][0-9]*", re.ASCII)


class SealedSteps:
    """A folder of checkpoints, one per step, shared by all processes.

    All make the same calls, except `close`. Orbax copies the arrays to the host and writes them in
    threads; then another thread hashes this process's share of the files. A step that is not sealed
    does not count, and an older one is removed only once enough newer ones are sealed.
    """

    def __init__(self, folder: epath.Path, run_name: str, max_to_keep: int):
        self.folder, self._run_name, self._max_to_keep = folder, run_name, max_to_keep
        raise_only()
        options = ocp.CheckpointManagerOptions(
            create=True,
            # Two managers that save the same step must not wait at each other's barriers.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                barrier_sync_key_prefix=folder.name
            ),
        )
        self._manager = ocp.CheckpointManager(
            folder, options=options, handler_registry=saving_handlers()
        )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="seal")
        # The save under way, and its sealing once Orbax has written the files.
        self._pending: tuple[int, Facts] | None = None
        self._sealing: Future[None] | None = None

    def save(self, step: int, items: Mapping[str, PyTree], facts: Facts) -> None:
        """Starts to save trees of arrays by name; the arrays may be donated afterwards.

        `facts`, called when the seal is written, gives JSON to keep in it. See `finish` for errors.
        """
        # 1. Finish the save before.
        self.finish()
        # 2. Check the space, together: a process that failed alone would leave the others waiting
        # in the save.
        agree(lambda: check_space(self.folder, items))
        with full_disk_is_an_oserror(self.folder):
            saved = self._manager.save(step, args=save_args(items), force=True)
        # 3. Save. Orbax can return False without an error.
        if not saved:
            raise RuntimeError(f"{self.folder}: the checkpoint of step {step} was not saved")
        self._pending = step, facts
        self._num_arrays = {name: len(jax.tree.leaves(tree)) for name, tree in items.items()}

    def seal_if_saved(self) -> None:
        """Starts to seal the save under way, in a thread, if Orbax has ended; never waits."""
        if self._pending and not self._sealing and not self._manager.is_saving_in_progress():
            self._sealing = self._seal(*self._pending)

    def finish(self) -> None:
        """Waits until the save under way is sealed by every process.

        Raises:
            OSError: the disk is full.
            InputError: the disk of another process is full.
            Failed: another process failed, or what was written is incomplete.
        """
        if self._pending is None:
            return
        # 1. Finish this process's part.
        step, gather_facts = self._pending
        error: Exception | None = None
        try:
            self._finish_here(step, gather_facts)
        except Exception as failure:  # of any type: the other processes wait for the report
            error = failure
        # 2. Tell the others; one failure is everyone's.
        reports = gather_texts("" if error is None else _report(error))
        if error is not None:
            raise error
        for process, report in enumerate(reports):
            if report:
                name, fault = json.loads(report)
                kind = {kind.__name__: kind for kind in (InputError, Unreachable)}.get(name, Failed)
                raise kind(f"step {step} was not saved: process {process}: {fault}")
        # 3. Sealed by all: older steps may go.
        self._remove_old()

    def close(self) -> None:
        """Seals this process's share of the save under way; one process may call it alone."""
        with full_disk_is_an_oserror(self.folder), contextlib.ExitStack() as closing:
            closing.callback(self._manager.close)
            closing.callback(self._thread.shutdown)
            if self._pending is not None:
                self._finish_here(*self._pending)

    def newest_sound(self) -> tuple[int | None, dict[int, str]]:
        """The newest sound step or None, and the faults of the damaged steps newer than it.

        Newer steps make room: unfinished ones are removed, damaged ones set aside, with messages.
        If no step is sound, unfinished ones are set aside and damaged ones stay: nothing is lost.
        """
        # 1. Remove what Orbax left of saves that were cut off.
        if jax.process_index() == 0:
            for leftover in self.folder.glob("*.orbax-checkpoint-tmp*"):
                leftover.rmtree()
        faults: dict[int, str] = {}
        cut_off: list[int] = []
        # 2. Check the steps from the newest on. Process 0 says which, so that all agree.
        for step in reversed(from_first_process(self.steps())):
            folder = self.folder / str(step)
            cut_off_here = from_first_process(seals.is_cut_off(folder))
            expected = identity(self.folder, self._run_name, step)
            fault = seals.find_fault_together(folder, expected)
            if fault is None:
                for newer in cut_off:
                    self.set_aside(newer, keep=False)
                for newer in faults:
                    self.set_aside(newer, keep=True)
                return step, faults
            say(f"checkpoint skipped: {fault}")
            if cut_off_here:
                cut_off.append(step)
            else:
                faults[step] = fault
        # 3. None is sound.
        for step in cut_off:
            self.set_aside(step, keep=True)
        return None, faults

    def steps(self) -> list[int]:
        """All steps, sealed or not; Orbax's own list omits those it takes for incomplete."""
        return steps_in(self.folder)

    def set_aside(self, step: int, keep: bool) -> None:
        """Makes room for a step; `keep` moves its folder to `damaged_*`, unless that exists."""

        def make_room() -> None:
            folder, name = self.folder / str(step), self.folder.name.removesuffix("s")
            target = self.folder.parent / f"damaged_{name}_{step}"
            if keep and not target.exists():
                move(folder, target)
            else:
                _remove(folder)

        on_first_process(make_room)
        # Orbax caches the list of steps.
        self._manager.reload()

    def _seal(self, step: int, gather_facts: Facts) -> Future[None]:
        folder, here = self.folder / str(step), (jax.process_index(), jax.process_count())
        facts = {**gather_facts(), **identity(self.folder, self._run_name, step)}

        def work() -> None:
            # By now Orbax has merged the parts of all processes, on process 0.
            if jax.process_index() == 0:
                check_whole(folder, self._num_arrays)
            seals.seal(folder, *here, facts)
            self._remove_old()

        return self._thread.submit(work)

    def _finish_here(self, step: int, gather_facts: Facts) -> None:
        try:
            with full_disk_is_an_oserror(self.folder):
                self._manager.wait_until_finished()
            (self._sealing or self._seal(step, gather_facts)).result()
        finally:
            self._pending = self._sealing = None

    def _remove_old(self) -> None:
        if jax.process_index() != 0:
            return
        steps = self.steps()
        sealed = [step for step in steps if seals.is_sealed(self.folder / str(step))]
        for step in steps:
            if len(sealed) >= self._max_to_keep and step < sealed[-self._max_to_keep]:
                _remove(self.folder / str(step))


def identity(folder: epath.Path, run_name: str, step: int) -> dict[str, Any]:
    """What a seal says about where its checkpoint belongs; `folder` is that of all steps."""
    return {"run": run_name, "kind": folder.name, "step": step}


def steps_in(folder: epath.Path) -> list[int]:
    """The steps that a folder has checkpoints of, sealed or not, in ascending order."""
    return sorted(int(path.name) for path in entries(folder) if _STEP_NAME.fullmatch(path.name))


def check_space(folder: epath.Path, items: Mapping[str, PyTree]) -> None:
    """Raises `OSError` if a local disk has no room for a checkpoint."""
    # Orbax would find out in a thread, and leave half a checkpoint.
    if not is_local(folder):
        return
    # The shards that this process writes, and 2 kB for Orbax's metadata of each array.
    num_bytes = sum(
        sum(shard.data.nbytes for shard in leaf.addressable_shards if shard.replica_id == 0) + 2048
        if isinstance(leaf, jax.Array)
        else 2048 + leaf.nbytes
        for leaf in jax.tree.leaves(items)
    )
    disk = shutil.disk_usage(folder)
    # Some mounts report no size.
    if disk.total and disk.free < num_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def check_whole(folder: epath.Path, num_arrays: Mapping[str, int]) -> None:
    """Raises `Failed` if a checkpoint that Orbax calls saved lacks some of its arrays."""
    for name, count in num_arrays.items():
        if gap := find_gap(folder / name, count):
            raise Failed(f"a checkpoint is incomplete: {gap}; it is skipped")


def _report(error: Exception) -> str:
    # The type that the other processes raise, and its text.
    if isinstance(error, OSError) and (reason := users_error(error)):
        return json.dumps([InputError.__name__, reason])
    failure = store_failure(error) or error
    text = str(failure) if failure is not error else f"{type(error).__name__}: {error}"
    return json.dumps([type(failure).__name__, " ".join(text.split())])


def _remove(folder: epath.Path) -> None:
    # The seal goes first: a folder that is half removed no longer counts.
    seals.break_seal(folder)
    folder.rmtree()


@contextlib.contextmanager
def full_disk_is_an_oserror(folder: epath.Path) -> Iterator[None]:
    """Turns Orbax's errors about a full disk into OSErrors with a path."""
    # Orbax wraps them in a ValueError, or names no file.
    try:
        with naming(folder):
            yield
    except ValueError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) or not is_local(folder):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
