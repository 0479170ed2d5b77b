"""Reads from environment variables which job of several processes this process belongs to.

Slurm, Cloud TPU and MPI each set their own; JAX reads them in its `jax/_src/clusters`.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from launch.errors import InputError

Environment = Mapping[str, str]

BY_HAND = "--coordinator=HOST:PORT --num_processes=N --process_id=I"
# Above Linux's ephemeral ports (32768 to 60999); the range that JAX's slurm_cluster.py uses too.
_FIRST_PORT, _PORTS = 61440, 4096
# Between the ports of an allocation's steps: the next job numbers do not hit them.
_STEP_STRIDE = 599


@dataclasses.dataclass(frozen=True)
class Job:
    """A job of several processes."""

    source: str  # whose job it is, and the variable that says so
    # For jax.distributed.initialize, which asks the cluster for those that are missing here.
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    fault: str = ""  # why these variables do not let its processes find each other
    is_started: bool = True  # whether the other processes run too, or only this one


def find_job(environment: Environment) -> Job | None:
    """The job of several processes that the variables describe; None if they describe none.

    Raises `InputError` if a variable is missing or not a number, or if two clusters set theirs.
    """
    # MPI launchers may start their helpers through Slurm, whose variables then say nothing of us.
    if job := _mpi_job(environment):
        return job
    jobs = [job for job in (_slurm_job(environment), _tpu_job(environment)) if job]
    if len(jobs) > 1:
        raise InputError(
            f"the environment describes two jobs, {jobs[0].source} and {jobs[1].source}; "
            f"unset the variables of one, or pass {BY_HAND}"
        )
    return jobs[0] if jobs else None


def check_alone(environment: Environment, coordinator: str) -> None:
    """Raises `InputError` if a command for one process was started as one of several.

    With `coordinator` 'none' the user says that it is alone.
    """
    if coordinator not in ("", "none"):
        raise InputError(f"--coordinator={coordinator}: this command is one process; leave it out")
    job = None if coordinator == "none" else find_job(environment)
    if job and job.is_started:
        raise InputError(
            "this command runs as one process, but was started as one of several "
            f"({job.source}); start it once, or pass --coordinator=none"
        )


def _mpi_job(environment: Environment) -> Job | None:
    for variable in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        # Slurm sets PMI variables as well: then its own say more.
        tasks = environment.get("SLURM_STEP_NUM_TASKS")
        if variable == "PMI_SIZE" and environment.get(variable) == tasks:
            continue
        if _number(environment, variable, 1) > 1:
            source = f"MPI's {variable}={environment[variable]}"
            # By this variable of mpirun, JAX's ompi_cluster.py finds the coordinator.
            if "OMPI_MCA_orte_hnp_uri" in environment:
                return Job(source)
            fault = f"JAX cannot find the processes of this MPI; pass {BY_HAND}"
            return Job(source, fault=fault)
    return None


def _slurm_job(environment: Environment) -> Job | None:
    if "SLURM_JOB_ID" not in environment:
        # 1. Outside of a step (srun), this is the batch script itself.
        return None
    if "SLURM_STEP_ID" not in environment:
        return _slurm_script(environment)
    tasks = _number(environment, "SLURM_STEP_NUM_TASKS", 1)
    if tasks < 2:
        return None
    # 2. A step of several tasks.
    source = f"Slurm's SLURM_STEP_NUM_TASKS={tasks}"
    if _number(environment, "SLURM_HET_SIZE", 1) > 1:
        fault = f"a heterogeneous job has several node lists; pass {BY_HAND}"
        return Job(source, fault=fault)
    # 3. The same address on every node: the first node, and a port made from job and step.
    own = _number(environment, "SLURM_PROCID")
    if own >= tasks:
        raise InputError(f"SLURM_PROCID must be from 0 to {tasks - 1} ({source}), got {own}")
    address = environment.get("JAX_COORDINATOR_ADDRESS")
    arguments = {
        "coordinator_address": address or f"{_first_node(environment)}:{_slurm_port(environment)}",
        "num_processes": tasks,
        "process_id": own,
    }
    return Job(source, arguments)


def _slurm_script(environment: Environment) -> Job | None:
    # A batch script is a single process with rank 0, however many tasks the job asks for.
    for variable in ("SLURM_NTASKS", "SLURM_JOB_NUM_NODES"):
        if (count := _number(environment, variable, 1)) > 1:
            source = f"Slurm's {variable}={count}"
            fault = (
                "without srun a command is one process; start it with srun, or pass "
                "--coordinator=none to use this node alone"
            )
            return Job(source, fault=fault, is_started=False)
    return None


def _first_node(environment: Environment) -> str:
    """The node of task 0: a001 for `a[001-003,7],b`, rack1n4 for `rack[1-2]n[4,5]`."""
    nodes = environment.get("SLURM_STEP_NODELIST", "")
    first = re.match(r"(?:[^,\[\]\s]|\[[\w,-]+\])+", nodes)
    if not first:
        raise InputError(f"SLURM_STEP_NODELIST must name a node, got {nodes!r}; start it with srun")
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0])


def _slurm_port(environment: Environment) -> int:
    if "JAX_COORDINATOR_PORT" in environment:
        return _number(environment, "JAX_COORDINATOR_PORT")
    job, step = (_number(environment, name) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return _FIRST_PORT + (job + _STEP_STRIDE * step) % _PORTS


def _tpu_job(environment: Environment) -> Job | None:
    # 1. How many hosts and slices: the first variable that is set counts, as in JAX.
    names = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
    variable = next((name for name in names if name in environment), names[1])
    hosts = environment.get(variable, "localhost").split(",")
    slices = _number(environment, "MEGASCALE_NUM_SLICES", 1)
    if len(hosts) == 1 and slices < 2:
        return None
    # On Kaggle the variable can hold a warning in plain words.
    if not all(re.fullmatch(r"\S+", host.strip()) for host in hosts):
        raise InputError(
            f"{variable} must be a list of hosts, got {environment[variable]!r}; fix it, or unset "
            "it if there is only this host"
        )
    # 2. What JAX would trip over later: variables that are missing or out of range.
    limits = {"MEGASCALE_SLICE_ID": slices}
    if variable in environment:
        # Without these, JAX asks the metadata server of a TPU VM, which a pod of Kubernetes lacks.
        limits["TPU_WORKER_ID"] = len(hosts)
        needed = ["TPU_WORKER_ID"]
        needed += ["MEGASCALE_SLICE_ID", "MEGASCALE_COORDINATOR_ADDRESS"] if slices > 1 else []
        if missing := [name for name in needed if not environment.get(name)]:
            raise InputError(f"the environment variable {missing[0]} is missing; set it")
    for name, limit in limits.items():
        if (number := _number(environment, name, 0)) >= limit:
            raise InputError(f"{name} must be from 0 to {limit - 1}, got {number}")
    counted = variable if len(hosts) > 1 else "MEGASCALE_NUM_SLICES"
    return Job(f"Cloud TPU's {counted}={environment[counted]}")


def _number(environment: Environment, variable: str, default: int | None = None) -> int:
    text = environment.get(variable)
    if not text and default is not None:
        return default
    if text is None or not re.fullmatch(r"[0-9]+", text):
        state = "is missing" if text is None else f"is not a number ({text!r})"
        raise InputError(f"the environment variable {variable} {state}; fix or unset it")
    return int(text)
