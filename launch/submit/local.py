"""Mode local: a job's processes on this machine, in the foreground."""

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from launch.cli import say
from launch.errors import PREEMPTED, InputError
from launch.submit import terminal
from launch.submit.mode import Mode, Request, check_least, check_processes
from launch.submit.plan import Command, Plan
from launch.submit.processes import GOES_ON, PORT, listening, run_once
from launch.submit.record import ENDED, Record

# Appended to the commands of processes that share the work, and of those that each do a part.
COORDINATED = ("--coordinator={address}", "--num_processes={count}", "--process_id={rank}")
APART = ("--worker={rank}", "--num_workers={count}")


class Local(Mode):
    """Processes on this machine; the terminal shows the first one's output."""

    name = "local"
    description = "processes on this machine, each with CPU devices or a GPU"
    examples = (
        (
            "--processes=2 --devices=cpu",
            "python -m imagen_ft.finetune --config=configs/digits/pretrain_base4.py "
            "--workdir=runs/two",
        ),
        (
            "--processes=2",
            "python -m classifiers.train --config=configs/digits/classifier.py --workdir=runs/real",
        ),
        (
            "--workers=2 --devices=cpu",
            "python -m imagen_ft.generate --config=configs/digits/generate.py "
            "--workdir=runs/digits/more",
        ),
    )
    copies_code = False
    starts_later = False
    hosts_share_disks = True

    def define_flags(self, values: flags.FlagValues) -> None:
        """Adds the flags for the number and kind of processes."""
        flags.DEFINE_integer("processes", 1, "that share the work", flag_values=values)
        flags.DEFINE_integer(
            "workers",
            0,
            "that each do a part on their own (--worker=I --num_workers=N), instead of --processes",
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
            "restarts",
            0,
            "after exit code 75, 137 or 143, at most; 0 by default",
            flag_values=values,
        )

    def plan(self, request: Request) -> Plan:
        """One command per process; they run side by side, with a free port in place of PORT."""
        values = request.flags
        check_least(values, processes=1, workers=0, restarts=0)
        check_processes(request.task, values.processes, values.workers)
        if values.devices == "gpu":
            _check_gpus(values.workers or values.processes)
        return Plan(commands=tuple(Command(argv) for argv in self.commands(request)))

    def commands(self, request: Request) -> list[tuple[str, ...]]:
        """The command line of each process."""
        values = request.flags
        count = values.workers or values.processes
        more: tuple[str, ...] = APART if values.workers else COORDINATED if count > 1 else ()
        commands = []
        for rank in range(count):
            words = dict(address=f"127.0.0.1:{PORT}", count=count, rank=rank)
            behind = tuple(word.format(**words) for word in more)
            environment = _environment(values.devices, rank)
            commands.append((*environment, sys.executable, *request.task.argv[1:], *behind))
        return commands

    def found_by(self, request: Request) -> dict[str, Any]:
        """Its logs, and what `follow` runs; `stop` uses the terminal, which every record has."""
        return dict(
            logs=str(request.folder / request.name),
            processes=[list(argv) for argv in self.commands(request)],
            restarts=request.flags.restarts,
        )

    def start(self, record: Record, request: Request, plan: Plan) -> Record:
        """Starts nothing: `follow` runs the processes."""
        return dataclasses.replace(record, state="submitted")

    def follow(self, record: Record, folder: Path) -> int:
        """Runs the processes to their end, and restarts them as often as is allowed."""
        with listening() as asked:
            for attempt in range(record.resource["restarts"] + 1):
                record = record.with_(folder, state="running", attempts=attempt + 1)
                code = run_once(record.resource["processes"], Path(record.resource["logs"]), asked)
                codes = [*record.exit_codes, code]
                record = record.with_(folder, exit_codes=codes, state=_state(code, asked))
                if code not in GOES_ON or asked or attempt == record.resource["restarts"]:
                    break
                say(f"{record.name}: exit code {code}; restarting")
        return code

    def look(self, record: Record) -> Record:
        """A job has failed if its terminal is gone before it ended."""
        if record.state not in ENDED and terminal.is_gone(record.terminal):
            return dataclasses.replace(record, state="failed")
        return record

    def logs(self, record: Record) -> Command:
        """Its first process's log."""
        return Command(("tail", "-n", "100", "-f", f"{record.resource['logs']}/process-0.log"))

    def stop(self, record: Record) -> Plan:
        """Sends SIGTERM, after which every process saves.

        Raises `InputError` if the job has ended or runs on another machine.
        """
        record = self.look(record)
        if record.state in ENDED:
            raise InputError(f"{record.name} has ended ({record.state}); there is nothing to stop")
        if terminal.is_elsewhere(record.terminal):
            raise InputError(f"{record.name} runs on {record.terminal['host']}; stop it there")
        # The shell's built-in `kill`: container images may lack the program.
        return Plan(commands=(Command(("sh", "-c", f"kill {record.terminal['pid']}")),))


def _visible() -> list[str]:
    """The GPUs in CUDA_VISIBLE_DEVICES; empty if it names none."""
    return [word.strip() for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word]


def _check_gpus(count: int) -> None:
    # The device files of NVIDIA's and AMD's drivers.
    if not any(map(os.path.exists, ("/dev/nvidiactl", "/dev/kfd"))):
        raise InputError("--devices=gpu needs a GPU on this machine; leave it out")
    if _visible() and len(_visible()) < count:
        raise InputError(
            f"--devices=gpu: CUDA_VISIBLE_DEVICES={','.join(_visible())} must name {count} GPUs, "
            f"one a process, got {len(_visible())}; name more, or start fewer processes"
        )


def _environment(devices: str, rank: int) -> tuple[str, ...]:
    if devices == "cpu":
        return ("env", "JAX_PLATFORMS=cpu", "JAX_NUM_CPU_DEVICES=1")
    # Only GPUs that are visible here: others may be in use by another job.
    gpu = dict(enumerate(_visible())).get(rank, str(rank))
    return ("env", f"CUDA_VISIBLE_DEVICES={gpu}") if devices == "gpu" else ()


def _state(code: int, asked: Sequence[int]) -> str:
    if code == 0:
        return "done"
    return "stopped" if asked else "preempted" if code == PREEMPTED else "failed"
