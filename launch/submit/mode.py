"""What the modes of `launch.submit` share."""

import abc
import dataclasses
import os
import re
from pathlib import Path
from typing import Any, ClassVar

from absl import flags

from launch.errors import InputError
from launch.files import is_local
from launch.submit.checkout import Checkout
from launch.submit.plan import Command, Plan, run
from launch.submit.record import Record
from launch.submit.task import Task

FLAGS_TITLE = "every mode"  # in --help
# Kubernetes allows 63 characters for a name with its suffixes (`-hosts-0-0-...`), gcluster 28.
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,26}[a-z0-9])?")


@dataclasses.dataclass(frozen=True)
class Request:
    """A job that a user asks for."""

    name: str
    task: Task
    checkout: Checkout
    flags: flags.FlagValues  # of the mode
    folder: Path  # for the records, logs and scripts of jobs

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of the environment variables to pass to the task."""
        return tuple(dict.fromkeys(self.flags.env))

    def options(self) -> dict[str, Any]:
        """The flags that were set on the command line, for the record."""
        return {name: self.flags[name].value for name in self.flags if self.flags[name].present}


class Mode(abc.ABC):
    """A way to start a job and to find it again; `launch.submit.__main__` lists them all."""

    name: ClassVar[str]  # on the command line
    description: ClassVar[str]  # one line for --help
    examples: ClassVar[tuple[tuple[str, str], ...]]  # for --help: options, and the task behind --
    copies_code: ClassVar[bool] = True  # whether hosts run the commit, not the files here
    # The program that lists its jobs, if they are known by a number that comes after submission;
    # empty if `found_by` alone finds them.
    queue: ClassVar[str] = ""
    gone: ClassVar[tuple[str, ...]] = ()  # parts of messages that say that a job does not exist
    starts_later: ClassVar[bool] = True  # whether the files here may change before the job starts
    hosts_share_disks: ClassVar[bool] = False  # whether a local path is one folder for all hosts
    shared_flag: ClassVar[str] = ""  # the flag that names folders which all hosts see
    can_be_followed: ClassVar[bool] = False  # whether another terminal can take over `follow`

    @abc.abstractmethod
    def define_flags(self, values: flags.FlagValues) -> None:
        """Adds the flags of this mode alone."""

    @abc.abstractmethod
    def plan(self, request: Request) -> Plan:
        """The files and commands, none of which runs; `InputError` for flags that do not fit."""

    def target(self, request: Request) -> str:
        """The TPUs as --preflight takes them; empty for other machines."""
        return ""

    def shared(self, request: Request) -> tuple[str, ...]:
        """Folders that all hosts see, besides paths at gs://."""
        return ()

    def found_by(self, request: Request) -> dict[str, Any]:
        """What identifies the job, as far as it is known before the start."""
        return {}

    def start(self, record: Record, request: Request, plan: Plan) -> Record:
        """Starts the job: writes the files, runs the commands, returns the new record.

        `record` is already saved. Raises `InputError` if a command failed; then what came before it
        is undone.
        """
        plan.write()
        try:
            printed = [run(command) for command in plan.commands]
        except InputError:
            plan.remove()
            raise
        resource = record.resource | self.numbered(printed)
        return dataclasses.replace(record, state="submitted", resource=resource)

    def numbered(self, printed: list[str]) -> dict[str, Any]:
        """What else identifies the job, such as its number, from the output of the commands."""
        return {}

    @abc.abstractmethod
    def look(self, record: Record) -> Record:
        """The record with the job's current state and exit codes."""

    @abc.abstractmethod
    def logs(self, record: Record) -> Command:
        """The command that prints and follows the first process's log."""

    @abc.abstractmethod
    def stop(self, record: Record) -> Plan:
        """Ends the job after letting it save."""

    def delete(self, record: Record) -> Plan:
        """Gives the machines back; in most modes, stopping the job does."""
        return self.stop(record)

    def follow(self, record: Record, folder: Path) -> int:
        """Stays with a job that was just started; returns the command's exit code.

        By default a job runs without its terminal.
        """
        return 0


def new_record(mode: Mode, request: Request) -> Record:
    """The record of a job that is about to be started."""
    commit = request.checkout.commit + ("+changes" if request.checkout.is_dirty else "")
    return Record(
        name=request.name,
        mode=mode.name,
        command=list(request.task.argv),
        workdir=request.task.workdir,
        commit=commit,
        options=request.options(),
        resource=mode.found_by(request),
    )


def define_common_flags(values: flags.FlagValues) -> None:
    """Adds the flags of every mode."""
    string, boolean = flags.DEFINE_string, flags.DEFINE_bool
    string("name", "", "of the job; by default the last folder of --workdir", flag_values=values)
    boolean("dry_run", False, "print the files and commands; run nothing", flag_values=values)
    flags.DEFINE_multi_string(
        "env",
        [],
        (
            "name of an environment variable to pass to the task; may be repeated; its value "
            "is never written to a file or a log"
        ),
        flag_values=values,
    )
    boolean(
        "allow_dirty", False, "run even if files here differ from the commit", flag_values=values
    )
    flags.DEFINE_enum(
        "check",
        "auto",
        ["auto", "dry_run", "preflight", "none"],
        (
            "how the config is checked before anything starts: preflight compiles it for the "
            "machines (minutes; needs TPUs and libtpu), otherwise --dry_run"
        ),
        flag_values=values,
    )
    string("jobs", "jobs", "folder of the records and logs of jobs", flag_values=values)


def check_variables(names: tuple[str, ...]) -> None:
    """Raises `InputError` if a variable of --env is not set, or its value is not a single line."""
    for name in names:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            # Whatever follows a `=` may be a secret, so the message does not repeat it.
            raise InputError(
                "--env must be the name of a variable without its value, got "
                f"{name.partition('=')[0]}=...; leave the value out"
            )
        if name not in os.environ:
            raise InputError(f"--env={name}: this variable is not set here; export it first")
        # Values travel as lines NAME=value.
        if "\n" in os.environ[name]:
            raise InputError(f"--env={name}: its value must be one line; pass it as a file")


def check_least(values: flags.FlagValues, **least: int) -> None:
    """Raises `InputError` if a flag is less than its value in `least`."""
    for name, number in least.items():
        if (given := getattr(values, name)) < number:
            raise InputError(f"--{name} must be at least {number}, got {given}")


def check_processes(task: Task, processes: int, workers: int) -> None:
    """Raises `InputError` if the task cannot run as so many processes or workers.

    Processes share the work; each worker does a part of it alone (0 for none).
    """
    if workers and processes > 1:
        raise InputError(
            "--workers and several processes exclude each other; pass only one of them"
        )
    if workers and "worker" not in task.flags:
        raise InputError(
            f"{task.module} has no --worker, so its work cannot be divided "
            "among workers; leave --workers out"
        )
    if processes > 1 and "num_processes" not in task.flags:
        raise InputError(
            f"{task.module} has no --num_processes, so it runs as one process; leave the number out"
        )


def check_workdir(mode: Mode, task: Task, shared: tuple[str, ...]) -> None:
    """Raises `InputError` unless all hosts see the work directory; they all see `shared`."""
    workdir = task.workdir
    if not workdir or not is_local(workdir) or mode.hosts_share_disks:
        return
    parents = [os.path.normpath(workdir), *map(str, Path(os.path.normpath(workdir)).parents)]
    if not any(os.path.normpath(path) in parents for path in shared):
        known = f" ({', '.join(shared)})" if shared else ""
        more = f", or under a folder that all hosts see{known}: {mode.shared_flag}"
        raise InputError(
            f"--workdir={workdir} would be a different folder on every host; choose one at "
            f"gs://{(more if mode.shared_flag else '')}"
        )


def job_name(given: str, task: Task) -> str:
    """The given name, or one made from the last folder of --workdir.

    Raises `InputError` if the given one has characters that some mode does not accept.
    """
    if given:
        if not _NAME.fullmatch(given):
            raise InputError(
                "--name must be up to 28 of a-z, 0-9 and -, a letter first and no - at "
                f"the end, got {given}"
            )
        return given
    # Any name becomes lower-case letters, digits and single hyphens, with a letter first.
    text = os.path.basename(task.workdir.rstrip("/")) or task.module.rpartition(".")[2]
    letters = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    name = (letters if letters[:1].isalpha() else f"job-{letters}")[:28].rstrip("-")
    return name or "job"
