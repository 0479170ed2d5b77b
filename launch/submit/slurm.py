"""Mode slurm: a batch script for a Slurm cluster, which is requeued where that helps."""

import contextlib
import dataclasses
import itertools
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from absl import flags

from launch.cli import say
from launch.errors import InputError
from launch.submit import slurm_script
from launch.submit.mode import Mode, Request, check_least, check_processes
from launch.submit.plan import Command, Plan, TextFile, run
from launch.submit.processes import GOES_ON
from launch.submit.record import ENDED, Record

# Seconds between looks at the logs, and between questions to the queue, which all users share.
LOG_SECONDS, QUEUE_SECONDS = 1.0, 30.0
# Slurm's names for states of jobs in the queue; then states that end a job from outside.
_WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "CONFIGURING")
_RUNNING = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT")
_TAKEN_AWAY = ("BOOT_FAIL", "DEADLINE", "NODE_FAIL", "PREEMPTED", "TIMEOUT")
# Seconds by which Slurm may send a signal too early (sbatch's manual on --signal).
_EARLY = 60
_OPTIONS = ("time", "partition", "account", "qos", "mem")


class Slurm(Mode):
    """A job, or an array of jobs, on a Slurm cluster."""

    name = "slurm"
    description = (
        "nodes of a Slurm cluster, with one process per node or GPU, or an array of workers"
    )
    examples = (
        (
            "--nodes=4 --gpus=8 --processes_per_node=8 --time=24:00:00",
            "python -m imagen_ft.finetune --config=configs/imagenet/if_i_l.py:host "
            "--workdir=/nfs/if_i_l",
        ),
        (
            "--workers=32 --gpus=1",
            "python -m imagen_ft.generate --config=configs/imagenet/generate.py --workdir=/nfs/x1",
        ),
        (
            "--nodes=2 --gpus=8 --dry_run",
            "python -m classifiers.train --config=configs/imagenet/resnet50.py "
            "--workdir=/nfs/resnet50",
        ),
    )
    copies_code = False
    hosts_share_disks = True
    queue = "squeue --me"
    gone = ("Invalid job id",)

    def define_flags(self, values: flags.FlagValues) -> None:
        """Adds the flags for nodes, processes and restarts."""
        string, integer = flags.DEFINE_string, flags.DEFINE_integer
        integer("nodes", 1, "that share the work", flag_values=values)
        string("gpus", "", "of each node: N or TYPE:N", flag_values=values)
        integer(
            "processes_per_node",
            1,
            "which divide the node's GPUs evenly: 1, or as many as it has GPUs",
            flag_values=values,
        )
        integer(
            "workers",
            0,
            "array of jobs, each one process that does a part on its own (--worker=I "
            "--num_workers=N), instead of --nodes",
            flag_values=values,
        )
        integer("cpus", 0, "of each process; by default the cluster's, often 1", flag_values=values)
        for name in _OPTIONS:
            string(name, "", f"as sbatch has it (--{name})", flag_values=values)
        flags.DEFINE_multi_string(
            "sbatch",
            [],
            'an option of sbatch, such as --sbatch="--constraint=a100"; may be repeated',
            flag_values=values,
        )
        integer(
            "grace",
            120,
            "seconds before the time limit at which the processes are asked to save and exit",
            flag_values=values,
        )
        integer(
            "restarts",
            10,
            "after exit code 75, 137 or 143, at most; 10 by default",
            flag_values=values,
        )
        flags.DEFINE_list(
            "node_disks",
            ["/tmp", "/var/tmp", "/dev/shm", "/run"],
            "folders that are different on every node, so that nothing the job needs may be there",
            flag_values=values,
        )

    def plan(self, request: Request) -> Plan:
        """The batch script, and the sbatch command, which passes on the current environment."""
        # 1. Refuse what would fail on the nodes, hours later.
        _check(request)
        folder = request.folder.absolute() / request.name
        _check_folders(request, folder)
        # 2. The script. It runs this very Python, which all nodes must see.
        values = dict(folder=str(folder), directory=os.getcwd(), most=str(request.flags.restarts))
        lists = dict(
            step=_step(request),
            task=(sys.executable, *request.task.argv[1:]),
            variables=request.variables,
        )
        workers = request.flags.workers
        text = slurm_script.render(_options(request, folder), values, lists, workers)
        path = request.folder / request.name / "job.sbatch"
        command = Command(("sbatch", "--parsable", "--export=ALL", str(path)))
        return Plan((TextFile(path, text),), (command,))

    def found_by(self, request: Request) -> dict[str, Any]:
        """Its logs, and whether it is an array."""
        logs, workers = str(request.folder.absolute() / request.name), request.flags.workers
        return dict(logs=logs) | (dict(workers=workers) if workers else {})

    def numbered(self, printed: list[str]) -> dict[str, Any]:
        """The job's number, and its cluster if there are several."""
        # `sbatch --parsable` prints NUMBER or NUMBER;CLUSTER, on some clusters after a greeting.
        number, _, cluster = (printed[0].split() or [""])[-1].partition(";")
        if not number.isdecimal():
            raise InputError(
                "sbatch did not print the job's number; look at `squeue --me`, and end "
                "the job there"
            )
        return dict(job_id=number) | (dict(cluster=cluster) if cluster else {})

    def look(self, record: Record) -> Record:
        """Asks the queue, then the accounting; exit codes come from files of the batch script."""
        jobs, folder = _jobs(record), Path(record.resource["logs"])
        codes = [_codes(folder / f"{job}.codes") for job in jobs]
        states = self._states(record)
        if states & {*_RUNNING}:
            state = "running"
        elif states & {*_WAITING}:
            state = "waiting"
        elif not states and record.state in ENDED:
            state = record.state  # Slurm forgets old jobs.
        else:
            is_stopped = (folder / f"{record.resource['job_id']}.stopped").exists()
            state = _ended(states, [each[-1] for each in codes if each], len(jobs), is_stopped)
        ended = [*itertools.chain(*codes)]
        # How many jobs of an array are running is not known here.
        attempts = len(ended) + (state == "running" and len(jobs) == 1)
        return dataclasses.replace(record, state=state, exit_codes=ended, attempts=attempts)

    def logs(self, record: Record) -> Command:
        """Follows the logs of the batch script and of the first process."""
        return Command(("tail", "-q", "-n", "100", "-F", *map(str, _logs(record))))

    def stop(self, record: Record) -> Plan:
        """Tells all processes to save; the mark keeps the job from being requeued."""
        job = record.resource["job_id"]
        mark = TextFile(Path(record.resource["logs"]) / f"{job}.stopped", "by launch.submit\n")
        words = ("scancel", *_cluster(record))
        # A running job gets a signal only, so that it can save; a pending one is cancelled at once.
        running = Command((*words, "--state=RUNNING", "--signal=TERM", job))
        return Plan((mark,), (running, Command((*words, "--state=PENDING", job))))

    def follow(self, record: Record, folder: Path) -> int:
        """Shows the logs until the job has ended."""
        say(f"{record.name}: Ctrl-C leaves it running; its logs are in {record.resource['logs']}")
        shown = dict.fromkeys(_logs(record), 0)
        looked = time.monotonic()
        while record.state not in ENDED:
            time.sleep(LOG_SECONDS)
            if time.monotonic() - looked >= QUEUE_SECONDS:
                # The queue may fail to answer now and then; that is no reason to stop.
                with contextlib.suppress(InputError):
                    record = self.look(record).keep(folder)
                looked = time.monotonic()
            for path, size in shown.items():
                shown[path] = _show(path, size)
        say(f"{record.name}: {record.state}")
        codes = [code for code in record.exit_codes[-1:] if code]
        return 0 if record.state == "done" else (codes or [1])[0]

    def _states(self, record: Record) -> set[str]:
        # --array: one line per job of an array.
        of_job = (*_cluster(record), f"--jobs={record.resource['job_id']}")
        queue = Command(("squeue", *of_job, "--noheader", "--array", "--format=%T"))
        if states := run(queue, self.gone).split():
            return set(states)
        with contextlib.suppress(InputError):  # Not every cluster has accounting.
            words = ("--allocations", "--noheader", "--parsable2", "--format=State")
            lines = run(Command(("sacct", *of_job, *words))).splitlines()
            # A state may carry details: CANCELLED by 1000.
            return {line.split()[0] for line in lines if line.strip()}
        return set()


def _check(request: Request) -> None:
    values = request.flags
    # 1. Times.
    check_least(values, nodes=1, processes_per_node=1, workers=0, cpus=0, restarts=0, grace=1)
    if values.grace > 65535:  # sbatch's limit for --signal
        raise InputError(f"--grace must be at most 65535 seconds, got {values.grace}")
    unlimited = values.time.lower() in ("", "0", "infinite", "unlimited")
    if not unlimited and _seconds(values.time) <= values.grace + _EARLY:
        raise InputError(
            f"--time must be more than --grace={values.grace} seconds and {_EARLY} more (Slurm may "
            f"be early), got {values.time}; the job would have to stop at once"
        )
    # 2. Processes and their GPUs.
    check_processes(request.task, values.nodes * values.processes_per_node, values.workers)
    gpus = values.gpus.rpartition(":")[2]
    if values.gpus and (not gpus.isdecimal() or int(gpus) < 1):
        raise InputError(f"--gpus must be N or TYPE:N, got {values.gpus}")
    if values.gpus and int(gpus) % values.processes_per_node:
        raise InputError(
            f"--processes_per_node must divide the {gpus} GPUs of a node evenly, got "
            f"{values.processes_per_node}; give 1, or as many as the node has GPUs"
        )
    # 3. Anything else goes to sbatch as it is.
    for option in values.sbatch:
        if not option.startswith("-"):
            raise InputError(f"--sbatch must be an option, such as --constraint=a100, got {option}")


def _seconds(time: str) -> int:
    """Seconds of a time in sbatch's forms: M, M:S, H:M:S, or days first: D-H, D-H:M, D-H:M:S."""
    days, dash, rest = time.rpartition("-")
    parts = rest.split(":")
    if not re.fullmatch(r"([0-9]+-)?[0-9]+(:[0-9]+){0,2}", time):
        raise InputError(f"--time must be like 90 (minutes), 1:30:00 or 2-12:00:00, got {time}")
    # After days come hours; without them, one or two parts begin with minutes.
    units = (3600, 60, 1) if dash or len(parts) == 3 else (60, 1)
    return int(days or 0) * 86400 + sum(
        int(part) * unit for part, unit in zip(parts, units, strict=False)
    )


def _check_folders(request: Request, folder: Path) -> None:
    """Checks that all nodes see what the job reads and writes, and that sbatch can name it."""
    if "\\" in str(folder):
        raise InputError(
            "--jobs must be a folder without a backslash, which Slurm reads "
            f"as its own, got {folder}"
        )
    # Links are resolved on both sides: /tmp may be a link, or a shared folder reached through one.
    local = [os.path.realpath(path) for path in request.flags.node_disks if path]
    paths = {
        "--workdir": request.task.workdir if "://" not in request.task.workdir else "",
        "the folder that this was started in": os.getcwd(),
        "--jobs": str(folder),
        "the folder of this Python": sys.prefix,
    }
    for name, path in paths.items():
        above = [os.path.realpath(path), *map(str, Path(os.path.realpath(path)).parents)]
        if path and (disk := next((each for each in local if each in above), "")):
            raise InputError(
                f"{name}, {path}, is under {disk}, which is a different folder on every node; use "
                "a folder that all nodes share (or correct --node_disks)"
            )


def _options(request: Request, folder: Path) -> tuple[str, ...]:
    """Options of sbatch."""
    values, workers = request.flags, request.flags.workers
    # In --output, sbatch replaces %j by the job's number, %A_%a by the array's and the index.
    log = str(folder).replace("%", "%%") + ("/%A_%a.log" if workers else "/%j.log")
    # Append: by default a requeued job would truncate its log.
    options = [
        f"--job-name={request.name}",
        f"--output={log}",
        "--open-mode=append",
        "--requeue",
        f"--signal=TERM@{values.grace}",
        *_step(request),
    ]
    if workers:
        options.append(f"--array=0-{workers - 1}")
    if values.gpus:
        options.append(f"--gpus-per-node={values.gpus}")
    options += [f"--{name}={values[name].value}" for name in _OPTIONS if values[name].value]
    return (*options, *values.sbatch)


def _step(request: Request) -> tuple[str, ...]:
    """Sizes, for both sbatch and srun: srun does not inherit all of them from the job."""
    values = request.flags
    tasks = values.nodes * values.processes_per_node
    sizes = [f"--nodes={values.nodes}", f"--ntasks={tasks}"]
    sizes.append(f"--ntasks-per-node={values.processes_per_node}")
    return (*sizes, *([f"--cpus-per-task={values.cpus}"] if values.cpus else []))


def _jobs(record: Record) -> list[str]:
    """The prefixes of a job's files: one, or one for each job of an array."""
    job, workers = record.resource["job_id"], record.resource.get("workers", 0)
    return [f"{job}_{worker}" for worker in range(workers)] or [job]


def _logs(record: Record) -> list[Path]:
    folder, first = Path(record.resource["logs"]), _jobs(record)[0]
    return [folder / f"{first}.log", folder / f"{first}-process-0.log"]


def _cluster(record: Record) -> tuple[str, ...]:
    cluster = record.resource.get("cluster")
    return (f"--clusters={cluster}",) if cluster else ()


def _codes(path: Path) -> list[int]:
    text = path.read_text() if path.exists() else ""
    return [int(word) for word in text.split() if word.isdecimal()]


def _ended(states: set[str], last: list[int], jobs: int, is_stopped: bool) -> str:
    """The state of a job that has left the queue.

    `states` are Slurm's, of its `jobs` parts, and empty without accounting; `last` are the last
    exit codes of the parts that have written one.
    """
    # The script's exit code 0 counts even if Slurm says CANCELLED: the job was done by then.
    if len(last) == jobs and not any(last):
        return "done"
    if is_stopped or "CANCELLED" in states:
        return "stopped"
    if any(code and code not in GOES_ON for code in last) or "OUT_OF_MEMORY" in states:
        return "failed"
    if any(last) or states & {*_TAKEN_AWAY}:
        return "preempted"
    return "done" if states == {"COMPLETED"} else "failed"


def _show(path: Path, size: int) -> int:
    """Prints what was added to a log of `size` bytes; returns its new size."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(size)
        sys.stdout.buffer.write(file.read())
        sys.stdout.flush()
        return file.tell()
    return size
