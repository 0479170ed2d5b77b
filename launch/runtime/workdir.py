"""Run directories: one config, one process, known inputs."""

from collections.abc import Mapping

import ml_collections
from etils import epath

from launch.errors import InputError
from launch.files import differences
from launch.folders import entries
from launch.runtime.checkpoints.checkpoint import BEST, CHECKPOINTS
from launch.runtime.checkpoints.orbax_options import check_path
from launch.runtime.config import plain
from launch.runtime.devices.distributed import decide_on_first_process
from launch.runtime.locks import lock
from launch.runtime.run_record import CONFIG, read_record, write_record

# They may change from run to run: no result depends on them, but for the rounding of sums.
FREE = (
    "accumulation",
    "best",
    "checkpoint_every",
    "evaluate_every",
    "evaluation_metric",
    "keep_checkpoints",
    "loader_workers",
    "log_every",
    "mesh",
    "pictures",
    "pictures_every",
    "profile",
)

_OF_INPUTS = " (checksums of the inputs, and for images of `upright`, whether they are rotated)"


def claim_workdir(
    workdir: epath.Path, config: ml_collections.ConfigDict, inputs: Mapping[str, str] | None = None
) -> str:
    """Begins or goes on with a run directory: writes `config.json` and `inputs.json`, or compares.

    A local directory stays locked against other processes until this one ends. Call it last, when
    all that can be wrong with the config has been found.

    Args:
        workdir: made if it is missing.
        config: of the run.
        inputs: digests of what the run is made from, by name.

    Returns:
        The run's name, which its checkpoints carry.

    Raises:
        InputError: the directory belongs to another config, was made from other inputs, is in use
            by another process, or is a file; its record is damaged or gone; or checkpoints cannot
            be saved under such a path.
    """

    def claim() -> str:
        check_path(workdir)
        lock(workdir)
        if (workdir / "provenance.json").exists():
            raise InputError(f"{workdir} is a synthetic set; name another --workdir")
        current = plain(config), dict(inputs or {})
        if not (workdir / CONFIG).exists():
            _check_new(workdir)
            return write_record(workdir, *current)
        before_config, before_inputs, name = read_record(workdir)
        _compare(workdir, before_inputs, current[1], _OF_INPUTS)
        _compare(workdir, before_config, current[0])
        return name

    return decide_on_first_process(claim)


def _check_new(workdir: epath.Path) -> None:
    """A config is written before all checkpoints: where there are some, it was lost."""
    for folder in (workdir, *(path for path in entries(workdir) if path.is_dir())):
        for name in (CHECKPOINTS, BEST):
            if (folder / name).is_dir() and entries(folder / name):
                raise InputError(
                    f"{workdir} has checkpoints, but no {CONFIG}; restore it, or name "
                    "another --workdir"
                )


def _compare(workdir: epath.Path, before: dict, current: dict, note: str = "") -> None:
    for field, (old, new) in differences(before, current).items():
        if field.partition(".")[0] not in FREE:
            raise InputError(
                f"{field} must be {old}, as when {workdir} was started, got {new}{note}; "
                "name another --workdir, or remove that one"
            )
