"""Mode local: the processes of a job on this machine, in the foreground."""

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from absl import flags

from launch.cli import say
from launch.errors import PREEMPTED, InputError
from launch.jobs.job import die_with_parent
from launch.submit.mode import Mode, Request, new_record
from launch.submit.plan import Command, Plan
from launch.submit.record import ENDED, Record

# In seconds: what processes have to save and leave before they are killed.
GRACE = 120.0
# Exit codes after which the same command goes on.
GOES_ON = (PREEMPTED, 128 + signal.SIGKILL, 128 + signal.SIGTERM)
COORDINATED = ("--coordinator={address}", "--num_processes={count}", "--process_id={rank}")
APART = ("--worker={rank}", "--num_workers={count}")
PORT = "PORT"


class Local(Mode):
    """Processes of this machine; the first one's output is on the terminal."""

    name = "local"
    description = "processes of this machine, as CPU devices or a GPU each"
    copies_code = False
    hosts_share_disks = True

    def define_flags(self, values: flags.FlagValues) -> None:
        """How many processes, of which kind."""
        flags.DEFINE_integer("processes", 1, "that share the work", flag_values=values)
        flags.DEFINE_integer(
            "workers",
            0,
            "that each do a part alone (--worker=I --num_workers=N), instead of --processes",
            flag_values=values,
        )
        flags.DEFINE_enum(
            "devices",
            "auto",
            ["auto", "cpu", "gpu"],
            "of each process: auto is what JAX finds, cpu is one CPU device each, gpu a GPU each",
            flag_values=values,
        )
        flags.DEFINE_integer(
            "restarts", 0, "how often the job is started again on exit code 75", flag_values=values
        )

    def plan(self, request: Request) -> Plan:
        """A command a process; they run side by side, with a free port in place of PORT."""
        values = request.flags
        count = values.workers or values.processes
        if values.processes < 1 or values.workers < 0 or values.restarts < 0:
            raise InputError("--processes must be at least 1, --workers and --restarts at least 0")
        if values.workers and values.processes > 1:
            raise InputError("--workers and --processes: give one of them")
        needed = "worker" if values.workers else "coordinator" if count > 1 else ""
        if needed and needed not in request.task.flags:
            raise InputError(f"{request.task.module} has no --{needed}: it is one process")
        if values.devices == "gpu" and not any(map(os.path.exists, ("/dev/nvidia0", "/dev/kfd"))):
            raise InputError("--devices=gpu: this machine shows no GPU; leave it out")
        more: tuple[str, ...] = APART if values.workers else COORDINATED if count > 1 else ()
        commands = []
        for rank in range(count):
            words = dict(address=f"127.0.0.1:{PORT}", count=count, rank=rank)
            more_words = tuple(word.format(**words) for word in more)
            environment = _environment(values.devices, rank)
            argv = (*environment, sys.executable, *request.task.argv[1:], *more_words)
            commands.append(Command(argv))
        return Plan(commands=tuple(commands))

    def submit(self, request: Request, plan: Plan) -> Record:
        """Keeps the record; `follow` runs the processes."""
        resource = dict(
            pid=os.getpid(),
            logs=str(request.folder / request.name),
            processes=[list(command.argv) for command in plan.commands],
            restarts=request.flags.restarts,
        )
        return new_record(self, request, resource).write(request.folder)

    def follow(self, record: Record, folder: Path) -> int:
        """Runs the processes to their end; starts them again as often as is allowed."""
        with _signals() as asked:
            for attempt in range(record.resource["restarts"] + 1):
                record = record.with_(folder, state="running")
                code = _run_once(record.resource["processes"], Path(record.resource["logs"]), asked)
                codes = [*record.exit_codes, code]
                record = record.with_(folder, exit_codes=codes, state=_state(code, asked))
                if code not in GOES_ON or asked or attempt == record.resource["restarts"]:
                    break
                say(f"{record.name}: exit code {code}; starting again")
        return code

    def look(self, record: Record) -> Record:
        """Whether its terminal is still there."""
        if record.state not in ENDED and not _is_running(record.resource["pid"]):
            return dataclasses.replace(record, state="failed")
        return record

    def logs(self, record: Record) -> Command:
        """Its first process's log."""
        return Command(("tail", "-n", "100", "-f", f"{record.resource['logs']}/process-0.log"))

    def stop(self, record: Record) -> Plan:
        """SIGTERM: every process saves."""
        return Plan(commands=(Command(("kill", str(record.resource["pid"]))),))


def _environment(devices: str, rank: int) -> tuple[str, ...]:
    if devices == "cpu":
        return ("env", "JAX_PLATFORMS=cpu", "JAX_NUM_CPU_DEVICES=1")
    return ("env", f"CUDA_VISIBLE_DEVICES={rank}") if devices == "gpu" else ()


def _state(code: int, asked: Sequence[int]) -> str:
    if code == 0:
        return "done"
    return "stopped" if asked else "preempted" if code == PREEMPTED else "failed"


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """A block in which Ctrl-C and SIGTERM are only noted, in the list that it is given."""
    asked: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {n: signal.signal(n, lambda number, frame: asked.append(number)) for n in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _run_once(processes: Sequence[Sequence[str]], logs: Path, asked: Sequence[int]) -> int:
    """Runs processes side by side until all have ended.

    The first that fails ends all. Who is asked to leave tells all to save, and waits for them; who
    is asked twice, or waits for too long, kills them.

    Returns:
        The exit code: 0 if all have ended well, 130 after Ctrl-C, else that of the first failure;
        of several at once one that a restart would not mend.
    """
    children = _start(processes, logs)
    told_at, heard, failures = 0.0, 0, list[int]()
    while any(child.code is None for child in children):
        before = bool(failures)
        for child in children:
            if child.poll() and not told_at:
                failures.append(child.code or 0)
        late = told_at and time.monotonic() - told_at > GRACE
        if (failures and not before) or (asked and not heard):
            told_at, heard = time.monotonic(), len(asked)
            _signal(children, signal.SIGTERM)
        elif late or len(asked) > max(heard, 1):
            _signal(children, signal.SIGKILL)
        time.sleep(0.02)
    for child in children:
        child.close()
    codes = failures or [child.code or 0 for child in children if child.code]
    if asked and codes:
        return 130 if signal.SIGINT in asked else codes[0]
    lasting = [code for code in codes if code not in GOES_ON]
    return (lasting or codes or [0])[0]


def _signal(children: Sequence["_Process"], number: int) -> None:
    for child in children:
        child.signal(number)


def _start(processes: Sequence[Sequence[str]], logs: Path) -> list["_Process"]:
    """Starts all, or none.

    Raises:
        OSError: one cannot be started.
    """
    logs.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children: list[_Process] = []
    try:
        for rank, argv in enumerate(processes):
            words = [word.replace(f"127.0.0.1:{PORT}", f"127.0.0.1:{port}") for word in argv]
            show = sys.stdout.buffer.write if rank == 0 else None
            children.append(_Process(words, logs / f"process-{rank}.log", show))
    except BaseException:
        _signal(children, signal.SIGKILL)
        raise
    return children


class _Process:
    """One process of the job: what it prints goes to its log, and the first one's to us too.

    Attributes:
        code: its exit code as a shell has it; None while it runs.
    """

    def __init__(self, argv: Sequence[str], log: Path, show: Callable[[bytes], Any] | None):
        self.code: int | None = None
        self._child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,
            # A group of its own: Ctrl-C reaches us alone, and we tell it once.
            process_group=0,
        )
        arguments = (self._child.stdout, log, show)
        self._reader = threading.Thread(target=_copy, args=arguments, daemon=True)
        self._reader.start()

    def poll(self) -> bool:
        """Looks whether it has ended just now, and not well."""
        if self.code is not None or self._child.poll() is None:
            return False
        code = self._child.returncode
        self.code = 128 - code if code < 0 else code
        return self.code != 0

    def signal(self, number: int) -> None:
        """Sends a signal to it and what it has started."""
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, number)

    def close(self) -> None:
        """Waits for the rest of its output."""
        self._reader.join(timeout=5.0)


def _copy(pipe: IO[bytes], log: Path, show: Callable[[bytes], Any] | None) -> None:
    with pipe:
        while chunk := os.read(pipe.fileno(), 65536):
            # A process must not wait for a full disk or a closed terminal.
            with contextlib.suppress(OSError), log.open("ab") as file:
                file.write(chunk)
            if show:
                with contextlib.suppress(OSError, ValueError):
                    show(chunk)
                    sys.stdout.flush()


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
