"""What is known of a job once its terminal is gone: `jobs/NAME.json`."""

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

# States of jobs that will not continue by themselves; their names can be used again.
ENDED = ("done", "failed", "stopped", "preempted")
# "starting" until the mode's programs have accepted the job.
STATES = ("starting", "submitted", "waiting", "running", *ENDED)


@dataclasses.dataclass(frozen=True)
class Record:
    """A job that was started."""

    name: str
    mode: str
    command: list[str]  # as after `--`
    workdir: str  # '' for a task without one
    commit: str  # with '+changes' if files differed from it
    options: dict[str, Any]  # flags that were set; never the value of a variable
    resource: dict[str, Any]  # what the mode finds the job by: ids, names, places
    state: str = "starting"  # one of STATES
    # One per attempt, in order: that of the first process that failed.
    exit_codes: list[int] = dataclasses.field(default_factory=list)
    attempts: int = 0  # for clusters that report only the last exit code
    submitted: float = dataclasses.field(default_factory=time.time)  # seconds since 1970
    # The process that has the job in hand, as `terminal.own` describes it.
    terminal: dict[str, Any] = dataclasses.field(default_factory=terminal.own)

    def keep(self, folder: Path) -> "Record":
        """Saves it as `folder/NAME.json` unless a later job has its name; returns it.

        Only for the process that has the job in hand; others call `renew`.
        """
        with _alone(folder):
            if self.has_name(folder):
                write_json(path_of(folder, self.name), dataclasses.asdict(self))
        return self

    def has_name(self, folder: Path) -> bool:
        """Whether no later job has taken its name."""
        is_kept = path_of(folder, self.name).exists()
        return not is_kept or read(folder, self.name).submitted == self.submitted

    def with_(self, folder: Path, **changes: Any) -> "Record":
        """Saves and returns the record with other values."""
        changed = dataclasses.replace(self, **changes)
        return self if changed == self else changed.keep(folder)


@contextlib.contextmanager
def claimed(folder: Path, record: Record, ended: Record | None) -> Iterator[None]:
    """A block that starts a job; its record exists before, and is removed on `InputError`.

    So a started job always has a record, and a name has one job. `ended` is the earlier job of that
    name; `InputError` if another terminal has taken the name since it was read.
    """
    # 1. Take the name.
    path = path_of(folder, record.name)
    with _alone(folder):
        if (read(folder, record.name) if path.exists() else None) != ended:
            raise InputError(
                f"another terminal just started a job {record.name!r}; give this one another --name"
            )
        write_json(path, dataclasses.asdict(record))
    # 2. Start the job. Other errors and Ctrl-C keep the record: the job may have started.
    try:
        yield
    except InputError:
        with _alone(folder):
            path.unlink()
            if ended:
                write_json(path, dataclasses.asdict(ended))
        with contextlib.suppress(OSError):  # The folder may hold other jobs.
            folder.rmdir()
        raise


def renew(folder: Path, before: Record, now: Record) -> Record:
    """Saves what `look` found, unless the record was written since `before` was read.

    Returns the record as it is saved.
    """
    with _alone(folder):
        if read(folder, before.name) == before:
            write_json(path_of(folder, now.name), dataclasses.asdict(now))
        return read(folder, before.name)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lets one process at a time read and write; the folder itself is the lock."""
    folder.mkdir(parents=True, exist_ok=True)
    number = os.open(folder, os.O_RDONLY)
    try:
        # Some file systems have no locks, or none on folders: without one it is only less safe.
        with contextlib.suppress(OSError):
            fcntl.flock(number, fcntl.LOCK_EX)
        yield
    finally:
        os.close(number)


def path_of(folder: Path, name: str) -> Path:
    """The path of a job's record."""
    return folder / f"{name}.json"


def listed(folder: Path) -> str:
    """Names the jobs in a folder, for a message."""
    names = sorted(file.stem for file in folder.glob("*.json"))
    return f"known: {', '.join(names) or 'none'}"


def read(folder: Path, name: str) -> Record:
    """Reads a job's record; raises `InputError` if there is none or it is damaged."""
    path = path_of(folder, name)
    if not path.exists():
        raise InputError(f"no job {name!r} was started from here; {listed(folder)}")
    kinds: dict[str, type] = dict(
        name=str, mode=str, command=list, workdir=str, commit=str, options=dict
    )
    kinds |= dict(resource=dict, state=str, exit_codes=list, attempts=int, submitted=float)
    kinds |= dict(terminal=dict)
    return Record(**read_fields(path, **kinds))
