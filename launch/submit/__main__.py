r"""Starts a task's command line on other machines, or as several processes on this one.

python -m launch.submit MODE [options] -- python -m TASK --config=FILE --workdir=DIR
python -m launch.submit status|logs|follow|stop|delete NAME

python -m launch.submit local --processes=2 --devices=cpu -- \
    python -m imagen_ft.finetune --config=configs/digits/pretrain_base4.py --workdir=runs/two
python -m launch.submit slurm --nodes=4 --gpus=8 --processes_per_node=8 --dry_run -- \
    python -m imagen_ft.finetune --config=configs/imagenet/if_i_l.py:host --workdir=/shared/if_i_l
python -m launch.submit status if-i-l

MODE is one of:
{modes}
--dry_run prints the files and commands and runs nothing; MODE --help lists a mode's options. A job
is recorded in jobs/NAME.json, where the other commands find it, from any terminal. `stop` lets it
save; `delete` gives its machines back; `follow` reattaches after its terminal was closed (tpu-vm).
"""

import dataclasses
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from launch import cli
from launch.cli import say
from launch.errors import InputError
from launch.submit import record as records
from launch.submit import terminal
from launch.submit.checkout import check_clean, find_checkout
from launch.submit.gke import Gke
from launch.submit.local import Local
from launch.submit.mode import (
    Mode,
    Request,
    check_variables,
    check_workdir,
    define_common_flags,
    job_name,
    new_record,
)
from launch.submit.plan import run, stream
from launch.submit.record import ENDED, Record
from launch.submit.sky import Sky
from launch.submit.slurm import Slurm
from launch.submit.status import show
from launch.submit.task import SYNTAX, Task
from launch.submit.tpu_vm import TpuVm

_ALL = (Local(), Slurm(), TpuVm(), Gke(), Sky())
MODES: dict[str, Mode] = {mode.name: mode for mode in _ALL}
ACTIONS = ("status", "logs", "follow", "stop", "delete")
RESUME = "the job continues without this terminal: python -m launch.submit status NAME"


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code.

    Raises `InputError` for a wrong command line and for what a mode refuses.
    """
    words = list(argv[1:])
    what = words[0] if words else "--help"
    if what in ("--help", "-h", "-help"):
        modes = "\n".join(f"  {mode.name}: {mode.description}" for mode in MODES.values())
        print(__doc__.strip().format(modes=modes))
        return 0
    if what in MODES:
        return submit(MODES[what], [argv[0], *words[1:]])
    if what in ACTIONS:
        return act(what, [argv[0], *words[1:]])
    known = ", ".join((*MODES, *ACTIONS))
    raise InputError(f"MODE must be one of {known}, got {what!r}; {SYNTAX}")


def submit(mode: Mode, argv: Sequence[str]) -> int:
    """Starts a job, or prints what would start it.

    `argv`: the program's name, the mode's options, `--` and the task.
    """
    # 1. The options of the mode, then the task's command line.
    options = list(argv)
    behind = options.index("--") if "--" in options else len(options)

    def define_flags(values: flags.FlagValues) -> None:
        define_common_flags(values)
        mode.define_flags(values)

    command = f"python -m launch.submit {mode.name}"
    examples = (f"{command} {chosen} -- \\\n    {task}" for chosen, task in mode.examples)
    text = "\n".join((f"{mode.description}\n", SYNTAX.replace("MODE", mode.name), "", *examples))
    values = cli.parse_flags(options[:behind], text, define_flags)
    if values is None:
        return 0
    # 2. The request. Nothing is written or started before every check has passed, cheap ones first.
    task, checkout = Task.of(options[behind + 1 :]), find_checkout(mode.starts_later)
    request = Request(job_name(values.name, task), task, checkout, values, Path(values.jobs))
    check_variables(request.variables)
    check_workdir(mode, task, mode.shared(request))
    if mode.starts_later:
        check_clean(checkout, values.allow_dirty, mode.copies_code)
    plan = mode.plan(request)
    is_started = not (values.dry_run or plan.by_hand)
    ended = _check_name(request) if is_started else None
    _check_task(mode, request)
    # 3. A dry run, or another tool that the user runs, ends here.
    if not is_started:
        print(plan)
        if plan.by_hand:
            say(plan.by_hand)
        return 0
    # 4. The record is written first, so that a started job can always be found.
    record = new_record(mode, request)
    with records.claimed(request.folder, record, ended):
        record = mode.start(record, request, plan)
    record = record.keep(request.folder)
    say(f"{record.name}: {record.state} ({records.path_of(request.folder, record.name)})")
    return mode.follow(record, request.folder)


def act(action: str, argv: Sequence[str]) -> int:
    """Shows, follows or ends a job; `argv`: the program's name, the job's, and options."""
    # 1. The job's record.
    names = [word for word in argv[1:] if not word.startswith("-")]
    options = [argv[0], *(word for word in argv[1:] if word.startswith("-"))]
    values = cli.parse_flags(options, __doc__.partition("\n\nMODE")[0], _define_action_flags)
    if values is None:
        return 0
    folder = Path(values.jobs)
    if len(names) != 1:
        raise InputError(
            f"give one job: python -m launch.submit {action} NAME [--jobs=FOLDER] "
            f"({records.listed(folder)})"
        )
    record = records.read(folder, names[0])
    mode = _mode_of(record, folder)
    # A queue finds its job by a number, which is not known until it was submitted.
    if mode.queue and record.state == "starting":
        raise InputError(_unfinished(mode, record, folder))
    # 2. The action.
    if action in ("stop", "delete"):
        return _end(mode, record, action, values)
    if action == "logs":
        command = mode.logs(record)
        if values.dry_run:
            print(command)
            return 0
        return stream(command)
    if values.dry_run:
        raise InputError(
            f"--dry_run cannot be combined with {action}, which neither starts nor ends a job; "
            "leave it out"
        )
    if action == "follow":
        if not mode.can_be_followed:
            raise InputError(f"a job of {mode.name} cannot be followed; use status and logs")
        if terminal.is_another(record.terminal):
            raise InputError(
                f"{record.name} is followed by process {record.terminal['pid']} of this "
                "machine; press Ctrl-C there first, or use status and logs"
            )
        return mode.follow(record.with_(folder, terminal=terminal.own()), folder)
    try:
        record = _look(mode, record, folder)
    finally:
        show(record)  # As it was, if its cluster does not answer.
    return 0


def _define_action_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("jobs", "jobs", "folder of the records of jobs", flag_values=values)
    flags.DEFINE_bool("dry_run", False, "print the commands, run nothing", flag_values=values)


def _end(mode: Mode, record: Record, action: str, values: flags.FlagValues) -> int:
    plan = mode.stop(record) if action == "stop" else mode.delete(record)
    if values.dry_run:
        print(plan)
        return 0
    plan.write()
    for command in plan.commands:
        run(command, mode.gone)
    now = mode.look(record)
    if now.state in ("starting", "submitted", "waiting"):  # A running job must save first.
        now = dataclasses.replace(now, state="stopped")
    record = records.renew(Path(values.jobs), record, now)
    show(record)
    if record.state not in ENDED:
        say(f"{record.name}: asked to save and exit; `status` shows when it has")
    return 0


def _mode_of(record: Record, folder: Path) -> Mode:
    if record.mode not in MODES:
        raise InputError(f"{records.path_of(folder, record.name)}: unknown mode {record.mode!r}")
    return MODES[record.mode]


def _look(mode: Mode, record: Record, folder: Path) -> Record:
    """The record brought up to date, and saved."""
    # Another terminal is still starting it, or it has no number to ask a queue for.
    if record.state == "starting" and (mode.queue or not terminal.is_gone(record.terminal)):
        return record
    return records.renew(folder, record, mode.look(record))


def _unfinished(mode: Mode, record: Record, folder: Path) -> str:
    """What to do about a job whose number in a queue was never recorded."""
    if not terminal.is_gone(record.terminal):
        where = f"process {record.terminal['pid']} of {record.terminal['host']}"
        return f"a job {record.name!r} is being submitted by {where}; wait for it"
    return (
        f"the terminal that submitted the job {record.name!r} ended before it knew the "
        f"result; look for the job in `{mode.queue}` and end it there, then remove "
        f"{records.path_of(folder, record.name)}"
    )


def _check_task(mode: Mode, request: Request) -> None:
    """Lets the task check its own arguments, as far as --check says."""
    check, target = request.flags.check, mode.target(request)
    if check == "none":
        return
    if check == "preflight" and not target:
        raise InputError("--check=preflight needs a job with TPUs; leave it out")
    # Compiling takes minutes and libtpu: by default only where that is installed.
    compiles = target and "preflight" in request.task.flags
    if check == "auto":
        compiles = compiles and importlib.util.find_spec("libtpu") is not None
    if not compiles or check == "dry_run":
        target = ""
    else:
        say(f"compiling a step for {target}, which takes minutes (skip with --check=dry_run)")
    request.task.check(target)


def _check_name(request: Request) -> Record | None:
    """The ended job that has this name, if any; raises `InputError` if such a job has not ended."""
    if not records.path_of(request.folder, request.name).exists():
        return None
    record = records.read(request.folder, request.name)
    mode = _mode_of(record, request.folder)
    # What the record says may be old: the job can have ended since.
    if record.state not in ENDED:
        record = _look(mode, record, request.folder)
    if record.state in ENDED:
        return record
    if mode.queue and record.state == "starting":
        raise InputError(_unfinished(mode, record, request.folder))
    raise InputError(
        f"a job {record.name!r} is {record.state} ({record.mode}); stop it (python -m "
        f"launch.submit stop {record.name}), or give this one another --name"
    )


if __name__ == "__main__":
    codes: list[int] = []
    code = cli.exit_code(lambda: codes.append(main(sys.argv)), RESUME)
    sys.exit(code or codes[0])
