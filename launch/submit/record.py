"""What is known of a job after the terminal that has started it is gone: `jobs/NAME.json`."""

import contextlib
import dataclasses
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launch.errors import InputError
from launch.files import read_fields, write_json
from launch.submit import terminal

# Of jobs that will not go on by themselves; their names are free again.
ENDED = ("done", "failed", "stopped", "preempted")
# "starting" until the mode's programs have taken it.
STATES = ("starting", "submitted", "waiting", "running", *ENDED)


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
        terminal: that has started it, as `terminal.own` says.
    """

    name: str
    mode: str
    command: list[str]
    workdir: str
    commit: str
    options: dict[str, Any]
    resource: dict[str, Any]
    state: str = "starting"
    exit_codes: list[int] = dataclasses.field(default_factory=list)
    attempts: int = 0
    submitted: float = dataclasses.field(default_factory=time.time)
    terminal: dict[str, Any] = dataclasses.field(default_factory=terminal.own)

    def keep(self, folder: Path) -> "Record":
        """Writes it as `folder/NAME.json`, unless a later job has that name now; returns it.

        It is for who has the job in its hands; others `renew`.
        """
        with _alone(folder):
            if self.has_name(folder):
                write_json(path_of(folder, self.name), dataclasses.asdict(self))
        return self

    def has_name(self, folder: Path) -> bool:
        """Whether no later job has its name."""
        is_kept = path_of(folder, self.name).exists()
        return not is_kept or read(folder, self.name).submitted == self.submitted

    def with_(self, folder: Path, **changes: Any) -> "Record":
        """The record with other values, which are kept."""
        changed = dataclasses.replace(self, **changes)
        return self if changed == self else changed.keep(folder)


@contextlib.contextmanager
def claimed(folder: Path, record: Record, ended: Record | None) -> Iterator[None]:
    """A block that starts a job, whose record is there before; with an `InputError` it goes again.

    So a job that was started is never without a record, and a name has one job.

    Args:
        folder: of the records.
        record: of the new job.
        ended: the job that had this name before.

    Raises:
        InputError: another terminal has taken the name since `ended` was read.
    """
    path = path_of(folder, record.name)
    with _alone(folder):
        if (read(folder, record.name) if path.exists() else None) != ended:
            raise InputError(
                f"another terminal just started a job {record.name!r}; give this one another --name"
            )
        write_json(path, dataclasses.asdict(record))
    try:
        yield
    except InputError:
        with _alone(folder):
            path.unlink()
            if ended:
                write_json(path, dataclasses.asdict(ended))
        with contextlib.suppress(OSError):  # It may have other jobs.
            folder.rmdir()
        raise


def renew(folder: Path, before: Record, now: Record) -> Record:
    """Keeps what a look at a job has shown, if nobody has written since `before` was read.

    Returns:
        What is kept.
    """
    with _alone(folder):
        if read(folder, before.name) == before:
            write_json(path_of(folder, now.name), dataclasses.asdict(now))
        return read(folder, before.name)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time reads and writes; the folder itself is the lock."""
    folder.mkdir(parents=True, exist_ok=True)
    number = os.open(folder, os.O_RDONLY)
    try:
        # Some file systems know no locks, or none of folders.
        with contextlib.suppress(OSError):
            fcntl.flock(number, fcntl.LOCK_EX)
        yield
    finally:
        os.close(number)


def path_of(folder: Path, name: str) -> Path:
    """Where the record of a job is."""
    return folder / f"{name}.json"


def listed(folder: Path) -> str:
    """The names of the jobs there are."""
    names = sorted(file.stem for file in folder.glob("*.json"))
    return f"known: {', '.join(names) or 'none'}"


def read(folder: Path, name: str) -> Record:
    """Reads a job's record.

    Raises:
        InputError: there is none, or it is damaged.
    """
    path = path_of(folder, name)
    if not path.exists():
        raise InputError(f"no job {name!r} was started from here; {listed(folder)}")
    kinds: dict[str, type] = dict(
        name=str, mode=str, command=list, workdir=str, commit=str, options=dict
    )
    kinds |= dict(resource=dict, state=str, exit_codes=list, attempts=int, submitted=float)
    kinds |= dict(terminal=dict)
    return Record(**read_fields(path, **kinds))
