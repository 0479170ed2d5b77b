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

# Top-level fields that may change when a run resumes: no result depends on them, except through
# the rounding of sums.
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

# Appended to the message about inputs that differ.
_OF_INPUTS = " (checksums of the inputs, and for images of `upright`, whether they are rotated)"


def claim_workdir(
    workdir: epath.Path, config: ml_collections.ConfigDict, inputs: Mapping[str, str] | None = None
) -> str:
    """Starts or resumes a run directory: writes its record, or compares it with this config.

    Returns the run's name, which its checkpoints carry. `inputs` are checksums of what the run is
    made from. A local directory stays locked until this process ends. Call it last, after all
    checks of the config, as it is the first to write.

    Raises:
        InputError: the directory belongs to another config, was made from other inputs, is in use
            by another process, or is a file; its record is damaged or lost; or checkpoints cannot
            be saved under such a path.
    """

    def claim() -> str:
        # 1. Make sure of the directory, and keep other processes out.
        check_path(workdir)
        lock(workdir)
        if (workdir / "provenance.json").exists():
            raise InputError(f"{workdir} is a synthetic set; choose another --workdir")
        # 2. A new run: write its record.
        current = plain(config), dict(inputs or {})
        if not (workdir / CONFIG).exists():
            _check_new(workdir)
            return write_record(workdir, *current)
        # 3. An old one: only the fields in `FREE` may differ.
        before_config, before_inputs, name = read_record(workdir)
        _compare(workdir, before_inputs, current[1], _OF_INPUTS)
        _compare(workdir, before_config, current[0])
        return name

    return decide_on_first_process(claim)


def _check_new(workdir: epath.Path) -> None:
    # The record is written before the first checkpoint: checkpoints without it mean it was lost.
    for folder in (workdir, *(path for path in entries(workdir) if path.is_dir())):
        for name in (CHECKPOINTS, BEST):
            if (folder / name).is_dir() and entries(folder / name):
                raise InputError(
                    f"{workdir} has checkpoints, but no {CONFIG}; restore it, or choose another "
                    "--workdir"
                )


def _compare(workdir: epath.Path, before: dict, current: dict, note: str = "") -> None:
    for field, (old, new) in differences(before, current).items():
        if field.partition(".")[0] not in FREE:
            raise InputError(
                f"{field} must be {old}, as when {workdir} was started, got {new}{note}; choose "
                "another --workdir, or remove that one"
            )
