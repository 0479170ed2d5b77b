"""What is known of a job after the terminal that has started it is gone: `jobs/NAME.json`."""

import dataclasses
import time
from pathlib import Path
from typing import Any

from launch.errors import InputError
from launch.files import read_fields, write_json

# Of jobs that will not go on by themselves; their names are free again.
ENDED = ("done", "failed", "stopped", "preempted")
STATES = ("submitted", "waiting", "running", *ENDED)


@dataclasses.dataclass(frozen=True)
class Record:
    """A job that was started.

    Attributes:
        name: of the job.
        mode: that has started it.
        command: of the task, as behind `--`.
        workdir: of the task; empty where it has none.
        commit: of the code.
        options: flags that were given; never a value of a variable.
        resource: what the mode finds the job by: ids, names, places.
        state: one of `STATES`.
        exit_codes: of its attempts, in their order; of the first process that has failed.
        attempts: that were begun, where a cluster keeps the last exit code alone.
        submitted: seconds since 1970.
    """

    name: str
    mode: str
    command: list[str]
    workdir: str
    commit: str
    options: dict[str, Any]
    resource: dict[str, Any]
    state: str = "submitted"
    exit_codes: list[int] = dataclasses.field(default_factory=list)
    attempts: int = 0
    submitted: float = dataclasses.field(default_factory=time.time)

    def write(self, folder: Path) -> "Record":
        """Keeps it as `folder/NAME.json`; returns it."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path_of(folder, self.name), dataclasses.asdict(self))
        return self

    def with_(self, folder: Path, **changes: Any) -> "Record":
        """The record with other values, which are kept."""
        changed = dataclasses.replace(self, **changes)
        return self if changed == self else changed.write(folder)


def path_of(folder: Path, name: str) -> Path:
    """Where the record of a job is."""
    return folder / f"{name}.json"


def read(folder: Path, name: str) -> Record:
    """Reads a job's record.

    Raises:
        InputError: there is none, or it is damaged.
    """
    path = path_of(folder, name)
    if not path.exists():
        names = sorted(file.stem for file in folder.glob("*.json"))
        there = ", ".join(names) or "none"
        raise InputError(f"no job {name!r} was started from here (there is: {there})")
    kinds: dict[str, type] = dict(
        name=str, mode=str, command=list, workdir=str, commit=str, options=dict
    )
    kinds |= dict(resource=dict, state=str, exit_codes=list, attempts=int, submitted=float)
    return Record(**read_fields(path, **kinds))
