"""Run directories: one config, one process, known inputs."""

from collections.abc import Mapping

import ml_collections
from etils import epath

from launch.errors import InputError
from launch.files import differences, read_object, write_json
from launch.runtime.config import plain
from launch.runtime.devices.distributed import on_first_process
from launch.runtime.locks import lock

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


def _compare_or_write(workdir: epath.Path, name: str, current: dict) -> None:
    path = workdir / name
    if not path.exists():
        write_json(path, current)
        return
    for field, (before, now) in differences(read_object(path), current).items():
        if field.partition(".")[0] not in FREE:
            raise InputError(
                f"{workdir} was begun with {field} = {before}, now it is {now}: "
                "name another --workdir, or remove that one"
            )
