"""Mode sky: a SkyPilot managed job, on any cloud that has the machines.

Its YAML and commands follow the sources of SkyPilot 0.14.1.
"""

# What they do:
# * SkyPilot restarts a managed job on other machines when these are preempted, and when a process
#   ends with one of `recover_on_exit_codes`, without limit. 137 must not be one of them: SkyPilot
#   gives it to processes that it killed because another one failed.
# * A TPU pod is one node; its commands run on each of its hosts, which JAX finds by itself.
# * `--secret NAME` takes a variable's value from the environment of `sky`.

import contextlib
import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Any

from absl import flags

from launch.cli import say
from launch.errors import InputError
from launch.submit import tpus
from launch.submit.local import APART
from launch.submit.mode import Mode, Request, check_least, check_processes
from launch.submit.plan import Command, Plan, TextFile, run, stream
from launch.submit.record import ENDED, Record

# Any port will do: the machines are the job's alone.
PORT = 8476
_STATES = {
    "waiting": ("PENDING", "SUBMITTED", "STARTING", "RECOVERING"),
    "running": ("RUNNING", "WINDING_DOWN", "CANCELLING"),
    "done": ("SUCCEEDED",),
    "stopped": ("CANCELLED",),
}
_COORDINATED = (
    f'--coordinator="$(head -n 1 <<<"$SKYPILOT_NODE_IPS"):{PORT}"',
    '--num_processes="$SKYPILOT_NUM_NODES"',
    '--process_id="$SKYPILOT_NODE_RANK"',
)
_SETUP = """set -e
rm -rf ~/imagen_ft
git clone --quiet ~/imagen_ft.bundle ~/imagen_ft
export PATH="$HOME/.local/bin:$PATH"
uv venv --quiet --python 3.12 ~/imagen_ft/.venv
uv pip install --quiet --python ~/imagen_ft/.venv/bin/python --editable ~/imagen_ft{extras}
"""
_RUN = """cd ~/imagen_ft
export PATH="$HOME/imagen_ft/.venv/bin:$PATH"
{line}
code=$?
# SkyPilot keeps 137 for processes that it kills itself.
((code != 137)) || code=75
(exit "$code")
"""


class Sky(Mode):
    """A managed job of SkyPilot."""

    name = "sky"
    queue = "sky jobs queue"
    description = "machines of any cloud that SkyPilot knows, as a managed job that it recovers"
    examples = (
        (
            "--gpus=H100:8 --spot",
            "python -m imagen_ft.finetune --config=configs/imagenet/if_i_l.py "
            "--workdir=gs://my-bucket/if_i_l",
        ),
        (
            "--workers=8 --gpus=H100:8 --spot",
            "python -m imagen_ft.generate --config=configs/imagenet/generate.py "
            "--workdir=gs://my-bucket/imagenet_x1",
        ),
        (
            "--tpu_type=v6e-8 --dry_run",
            "python -m classifiers.train --config=configs/imagenet/resnet50.py "
            "--workdir=gs://my-bucket/resnet50",
        ),
    )

    def define_flags(self, values: flags.FlagValues) -> None:
        """Adds the flags for machines and places."""
        string, integer = flags.DEFINE_string, flags.DEFINE_integer
        string("tpu_type", "", f"of a node: {tpus.SYNTAX}", flag_values=values)
        string("gpus", "", "of a node, as SkyPilot calls them: H100:8", flag_values=values)
        integer("nodes", 1, "that share the work", flag_values=values)
        integer(
            "workers",
            0,
            "nodes that each do a part on their own (--worker=I --num_workers=N), instead of "
            "--nodes",
            flag_values=values,
        )
        flags.DEFINE_multi_string(
            "infra",
            [],
            "where: CLOUD, CLOUD/REGION, CLOUD/REGION/ZONE or k8s/CONTEXT; may be repeated; "
            "by default wherever it is cheapest",
            flag_values=values,
        )
        flags.DEFINE_bool(
            "spot", False, "machines that are cheaper, and can be taken away", flag_values=values
        )
        string("cpus", "", "of a node: 16, or 16+ for at least", flag_values=values)
        string("memory", "", "of a node in GB: 64, or 64+", flag_values=values)
        integer("disk", 256, "of a node in GB; 256 by default", flag_values=values)

    def target(self, request: Request) -> str:
        """The slice; empty for other machines."""
        piece = _slice(request)
        return piece.target(1) if piece else ""

    def plan(self, request: Request) -> Plan:
        """The code at its commit, as a git bundle, and the task."""
        _check(request)
        root, bundle = request.checkout.root, _bundle(request)
        path = request.folder / request.name / "task.yaml"
        code = Command(("git", "-C", str(root), "bundle", "create", "--quiet", str(bundle), "HEAD"))
        secrets = [f"--secret={name}" for name in request.variables]
        words = ("sky", "jobs", "launch", f"--name={request.name}", "--yes", "--detach-run")
        launch = Command((*words, *secrets, str(path)))
        return Plan((TextFile(path, _yaml(request)),), (code, launch))

    def start(self, record: Record, request: Request, plan: Plan) -> Record:
        """Starts the job; the first job also starts SkyPilot's controller, which takes minutes."""
        say(f"{request.name}: sky jobs launch, which takes minutes if no controller runs")
        try:
            return super().start(record, request, plan)
        except InputError:
            _bundle(request).unlink(missing_ok=True)
            plan.remove()
            raise

    def numbered(self, printed: list[str]) -> dict[str, Any]:
        """The job's number; SkyPilot allows several jobs with the same name."""
        match = re.search(r"Managed Job ID: ([0-9]+)", printed[-1])
        if not match:
            raise InputError(
                "sky jobs launch did not print the job's number; look at `sky jobs "
                "queue`, and end the job there"
            )
        return dict(job_id=match[1])

    def look(self, record: Record) -> Record:
        """Asks SkyPilot's queue, which does not report exit codes."""
        command = ("sky", "jobs", "queue", "--all", "--verbose", "--refresh", "--output=json")
        job = _job(run(Command(command)), int(record.resource["job_id"]))
        if not job and record.state in ENDED:
            return record  # The queue forgets old jobs.
        status = str(job.get("status"))
        state = next((state for state, names in _STATES.items() if status in names), "failed")
        reason = job.get("failure_reason")
        resource = record.resource | ({"reason": reason} if reason else {})
        attempts = (job.get("recovery_count") or 0) + 1
        return dataclasses.replace(record, state=state, resource=resource, attempts=attempts)

    def logs(self, record: Record) -> Command:
        """The output of all hosts, each line with its host's name."""
        return Command(("sky", "jobs", "logs", record.resource["job_id"]))

    def stop(self, record: Record) -> Plan:
        """Sends SIGTERM to the processes and gives the machines back."""
        words = ("sky", "jobs", "cancel", "--yes", record.resource["job_id"])
        return Plan(commands=(Command(words),))

    def follow(self, record: Record, folder: Path) -> int:
        """Shows the logs until the job has ended."""
        say(f"{record.name}: Ctrl-C leaves it running")
        stream(self.logs(record))
        with contextlib.suppress(InputError):
            record = self.look(record).keep(folder)
        say(f"{record.name}: {record.state}")
        return 1 if record.state in ENDED and record.state != "done" else 0


def _check(request: Request) -> None:
    # 1. What is true of all machines.
    tpus.check_given(request.flags.tpu_type)
    values, piece = request.flags, _slice(request)
    check_least(values, nodes=1, workers=0, disk=1)
    check_processes(request.task, values.nodes, values.workers)
    if values.tpu_type and values.gpus:
        raise InputError("--tpu_type and --gpus exclude each other; pass only one of them")
    if values.gpus and not re.fullmatch(r"[A-Za-z][\w.-]*:[1-9][0-9]*", values.gpus):
        raise InputError(f"--gpus must be TYPE:N, such as H100:8, got {values.gpus}")
    for name in ("cpus", "memory"):
        if not re.fullmatch(r"([0-9]+(\.[0-9]+)?\+?)?", getattr(values, name)):
            raise InputError(f"--{name} must be N or N+, got {getattr(values, name)}")
    # 2. What SkyPilot cannot do with TPU slices.
    if piece and any(place.startswith(("k8s", "kubernetes")) for place in values.infra):
        raise InputError(
            "--tpu_type cannot be combined with --infra=k8s; use the mode gke, which has whole "
            "slices"
        )
    if piece and values.nodes > 1:
        raise InputError(
            "--nodes cannot be combined with --tpu_type, as SkyPilot does not join slices; choose "
            "a larger one"
        )
    if piece and piece.hosts > 1:
        if values.workers:
            raise InputError(
                f"--workers needs machines of one host, got {values.tpu_type} with "
                f"{piece.hosts}; choose a smaller one"
            )
        check_processes(request.task, piece.hosts, 0)
    # 3. The command becomes one line of a script.
    if any(not word.isprintable() for word in request.task.argv):
        raise InputError(
            "the command after -- has a character that a SkyPilot task cannot hold; remove it"
        )


def _slice(request: Request) -> tpus.Slice | None:
    name = request.flags.tpu_type
    return tpus.parse(name.removeprefix("tpu-"), "") if name else None


def _bundle(request: Request) -> Path:
    return request.folder.absolute() / request.name / "code.bundle"


def _yaml(request: Request) -> str:
    """The task; its values are JSON, which is YAML."""
    # 1. The machines.
    values, piece = request.flags, _slice(request)
    accelerators = f"tpu-{piece.accelerator_type}" if piece else values.gpus
    lines = [
        f"name: {json.dumps(request.name)}",
        f"num_nodes: {values.workers or values.nodes}",
        "resources:",
    ]
    fields = dict(
        accelerators=accelerators, cpus=values.cpus, memory=values.memory, disk_size=values.disk
    )
    lines += [f"  {name}: {json.dumps(field)}" for name, field in fields.items() if field]
    if piece:
        # For v5e SkyPilot would choose the runtime of v5p.
        runtime = json.dumps(piece.generation.runtime)
        lines += ["  accelerator_args:", f"    runtime_version: {runtime}"]
    lines.append(f"  use_spot: {json.dumps(values.spot)}")
    if values.infra:
        lines += ["  any_of:", *(f"    - infra: {json.dumps(place)}" for place in values.infra)]
    # 2. When to restart it, the code, and the commands to install and run it.
    lines += ["  job_recovery:", "    recover_on_exit_codes: [75, 143]"]
    lines += ["file_mounts:", f'  "~/imagen_ft.bundle": {json.dumps(str(_bundle(request)))}']
    kind = "tpu," if piece else "cuda," if values.gpus else ""
    lines += ["setup: |", *_indented(_SETUP.format(extras=f"'[{kind}gcs]'"))]
    lines += ["run: |", *_indented(_RUN.format(line=_line(request, piece)))]
    return "\n".join(lines) + "\n"


def _line(request: Request, piece: tpus.Slice | None) -> str:
    values, more = request.flags, []
    if values.workers:
        words = dict(rank='"$SKYPILOT_NODE_RANK"', count=values.workers)
        more = [word.format(**words) for word in APART]
    elif piece and piece.hosts > 1:
        more = ["--coordinator=auto"]  # JAX finds the hosts of a slice by itself
    elif values.nodes > 1:
        more = [*_COORDINATED]
    return " ".join((shlex.join(request.task.argv), *more))


def _indented(text: str) -> list[str]:
    return [f"  {line}" for line in text.splitlines()]


def _job(text: str, number: int) -> dict[str, Any]:
    """The queue's entry for a job's number; empty if there is none."""
    # Messages of `sky` may come before the JSON.
    start = re.search(r"^\[", text, re.MULTILINE)
    try:
        jobs = json.JSONDecoder().raw_decode(text, start.start())[0] if start else []
    except ValueError:
        raise InputError("sky jobs queue --output=json printed no JSON; update SkyPilot") from None
    return next((job for job in jobs if job.get("job_id") == number), {})
