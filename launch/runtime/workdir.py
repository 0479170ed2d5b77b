"""Run directories: one config, one process, known inputs."""

import fcntl
import os
from collections.abc import Mapping

import ml_collections
from etils import epath

from input_pipeline.files import InputError, is_local, read_json, write_json
from launch.runtime.config import flatten, plain
from launch.runtime.distributed import on_first_process

# They may change from run to run: no result depends on them, but for the rounding of sums.
FREE = (
    "accumulation",
    "best",
    "checkpoint_every",
    "evaluate_every",
    "keep_checkpoints",
    "loader_workers",
    "log_every",
    "mesh",
    "pictures",
    "pictures_every",
    "profile",
)
_LOCKED: set[str] = set()


def claim_workdir(
    workdir: epath.Path, config: ml_collections.ConfigDict, inputs: Mapping[str, str] | None = None
) -> None:
    """Begins or goes on with a run directory: writes `config.json` and `inputs.json`, or compares.

    A local directory stays locked against other processes until this one ends. Call it last, when
    all that can be wrong with the config has been found.

    Args:
        workdir: made if it is missing.
        config: of the run.
        inputs: digests of what the run is made from, by name.

    Raises:
        InputError: the directory belongs to another config, was made from other inputs, is in use
            by another process, or is a file.
    """

    def claim() -> None:
        lock(workdir)
        if (workdir / "provenance.json").exists():
            raise InputError(f"{workdir} holds a generated set: name another --workdir")
        _compare_or_write(workdir, "inputs.json", dict(inputs or {}))
        _compare_or_write(workdir, "config.json", plain(config))

    on_first_process(claim)


def lock(workdir: epath.Path) -> None:
    """Makes a work directory and keeps other processes out of it until this one ends.

    Raises:
        InputError: another process is in it, or it is a file.
    """
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"{workdir} is a file, not a folder: name another --workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    path = os.path.abspath(workdir)
    if not is_local(workdir) or path in _LOCKED:
        return
    file = os.open(workdir / ".lock", os.O_RDWR | os.O_CREAT, 0o644)  # closed with the process
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise InputError(f"{workdir}: another process is at work in it; wait for its end") from None
    _LOCKED.add(path)


def load_run_config(workdir: epath.Path | str) -> ml_collections.ConfigDict:
    """Reads the config that a run directory was made with.

    Raises:
        InputError: there is no such run.
    """
    path = epath.Path(workdir) / "config.json"
    if not path.exists():
        raise InputError(f"{workdir} holds no run (no config.json): train it first")
    return ml_collections.ConfigDict(read_json(path))


def _compare_or_write(workdir: epath.Path, name: str, ours: dict) -> None:
    path = workdir / name
    if not path.exists():
        write_json(path, ours)
        return
    old, new = flatten(read_json(path)), flatten(ours)
    for field in sorted(old.keys() | new.keys()):
        before, now = old.get(field, "nothing"), new.get(field, "nothing")
        if before != now and field.partition(".")[0] not in FREE:
            raise InputError(
                f"{workdir} was begun with {field} = {before}, now it is {now}: "
                "name another --workdir, or remove that one"
            )
