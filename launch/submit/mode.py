"""What the modes of `launch.submit` have in common."""

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
# Kubernetes allows 63 letters for what it makes of a name; gcluster 28.
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,26}[a-z0-9])?")


@dataclasses.dataclass(frozen=True)
class Request:
    """A job that somebody asks for.

    Attributes:
        name: of the job.
        task: what is to be run.
        checkout: its code.
        flags: of the mode.
        folder: of the records, logs and scripts of jobs.
    """

    name: str
    task: Task
    checkout: Checkout
    flags: flags.FlagValues
    folder: Path

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of the environment variables that the task is to have."""
        return tuple(dict.fromkeys(self.flags.env))

    def options(self) -> dict[str, Any]:
        """The flags that were given, for the record."""
        return {name: self.flags[name].value for name in self.flags if self.flags[name].present}


class Mode(abc.ABC):
    """A way to start a job and to find it again.

    Attributes:
        name: on the command line.
        description: one line for --help.
        copies_code: whether hosts run the commit, not what lies here.
        queue: what lists its jobs, where these are found by a number that they are given at last;
            empty where `found_by` says all.
        gone: how its programs say that a job is not there, in parts of what they print.
        starts_later: whether what lies here may have changed before the job is started.
        hosts_share_disks: whether a local path is the same folder on all hosts.
        shared_flag: that names folders which all hosts see; empty if none does.
        can_be_followed: whether `follow` can be taken up by another terminal.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    copies_code: ClassVar[bool] = True
    queue: ClassVar[str] = ""
    gone: ClassVar[tuple[str, ...]] = ()
    starts_later: ClassVar[bool] = True
    hosts_share_disks: ClassVar[bool] = False
    shared_flag: ClassVar[str] = ""
    can_be_followed: ClassVar[bool] = False

    @abc.abstractmethod
    def define_flags(self, values: flags.FlagValues) -> None:
        """Flags of this mode alone."""

    @abc.abstractmethod
    def plan(self, request: Request) -> Plan:
        """The files and the commands; nothing is run.

        Raises:
            InputError: flags that do not fit together, or the task.
        """

    def target(self, request: Request) -> str:
        """The TPUs as --preflight takes them; empty for other machines."""
        return ""

    def shared(self, request: Request) -> tuple[str, ...]:
        """Folders that all hosts see, besides those at gs://."""
        return ()

    def found_by(self, request: Request) -> dict[str, Any]:
        """What the job is found by, as far as it is known before it is started."""
        return {}

    def start(self, record: Record, request: Request, plan: Plan) -> Record:
        """Starts the job: writes the files, runs the commands.

        Args:
            record: of the job, which is kept already.
            request: for the job.
            plan: of it.

        Returns:
            The record as it is then.

        Raises:
            InputError: a command has failed; what was begun before is taken back.
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
        """What else the job is found by, from what the commands have printed."""
        return {}

    @abc.abstractmethod
    def look(self, record: Record) -> Record:
        """The record with the job's state and exit codes as they are now."""

    @abc.abstractmethod
    def logs(self, record: Record) -> Command:
        """What prints the first process's log, and follows it."""

    @abc.abstractmethod
    def stop(self, record: Record) -> Plan:
        """What ends the job, so that it can save."""

    def delete(self, record: Record) -> Plan:
        """What gives the machines back; for most modes that is to stop the job."""
        return self.stop(record)

    def follow(self, record: Record, folder: Path) -> int:
        """Stays with a job that was started just now; the exit code of the command.

        By default a job goes on alone.
        """
        return 0


def new_record(mode: Mode, request: Request) -> Record:
    """The record of a job that is being started."""
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
    """Flags of every mode."""
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
        "allow_dirty", False, "run although files here differ from the commit", flag_values=values
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
    """Looks whether the variables of --env are set, to something that a line can hold.

    Raises:
        InputError: one is not.
    """
    for name in names:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            # What stands behind a `=` would be a value, which may be a secret: it is not repeated.
            raise InputError(
                "--env must be the name of a variable without its value, got "
                f"{name.partition('=')[0]}=...; leave the value out"
            )
        if name not in os.environ:
            raise InputError(f"--env={name}: this variable is not set here; export it first")
        if "\n" in os.environ[name]:
            raise InputError(f"--env={name}: its value must be one line; pass it as a file")


def check_least(values: flags.FlagValues, **least: int) -> None:
    """Looks whether numbers are large enough.

    Args:
        values: of a mode.
        **least: what each flag must be at least.

    Raises:
        InputError: one is not.
    """
    for name, number in least.items():
        if (given := getattr(values, name)) < number:
            raise InputError(f"--{name} must be at least {number}, got {given}")


def check_processes(task: Task, processes: int, workers: int) -> None:
    """Looks whether a task can be so many processes.

    Args:
        task: of the job.
        processes: that share the work.
        workers: that do a part each, alone; 0 for none.

    Raises:
        InputError: it cannot.
    """
    if workers and processes > 1:
        raise InputError("--workers and several processes exclude each other; give one of them")
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
    """Looks whether all hosts see one run directory.

    Args:
        mode: of the job.
        task: that has the directory.
        shared: folders that all hosts see.

    Raises:
        InputError: they do not.
    """
    workdir = task.workdir
    if not workdir or not is_local(workdir) or mode.hosts_share_disks:
        return
    parents = [os.path.normpath(workdir), *map(str, Path(os.path.normpath(workdir)).parents)]
    if not any(os.path.normpath(path) in parents for path in shared):
        known = f" ({', '.join(shared)})" if shared else ""
        more = f", or under a folder that all hosts see{known}: {mode.shared_flag}"
        raise InputError(
            f"--workdir={workdir} would be another folder on every host; name one at "
            f"gs://{(more if mode.shared_flag else '')}"
        )


def job_name(given: str, task: Task) -> str:
    """The name that was given, or one made of the run directory's last folder.

    Raises:
        InputError: the given one has letters that some system does not take.
    """
    if given:
        if not _NAME.fullmatch(given):
            raise InputError(
                "--name must be up to 28 of a-z, 0-9 and -, a letter first and no - at "
                f"the end, got {given}"
            )
        return given
    text = os.path.basename(task.workdir.rstrip("/")) or task.module.rpartition(".")[2]
    letters = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    name = (letters if letters[:1].isalpha() else f"job-{letters}")[:28].rstrip("-")
    return name or "job"
