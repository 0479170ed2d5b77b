"""How the processes of a job find each other, and which GPUs each of them uses."""

import json
import os
import re
import socket
import threading
import traceback
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import jax
from absl import flags
from filelock import FileLock, Timeout
from jax._src import distributed

from launch import cluster
from launch.cli import say
from launch.errors import PREEMPTED, InputError
from launch.files import NO_LOCKS, temporary_folder
from launch.runtime.devices import gpus

FLAGS_TITLE = "several processes"  # in --help
# JAX waits for 300 seconds, then aborts.
JOIN_SECONDS = 285.0
_GPUS, _DEVICES = "launch/gpus/", "launch/devices/"
# Until this process ends.
_NUMBERS: list[FileLock] = []


def define_flags(values: flags.FlagValues) -> None:
    """The flags that `initialize` reads; a command that has them is for one process or several."""
    flags.DEFINE_string(
        "coordinator",
        "",
        (
            "HOST:PORT of process 0 in a job of several processes, or 'auto' to ask the "
            "cluster (TPU VM, Slurm, GKE); Slurm and TPU jobs whose environment says so need "
            "no flag, 'none' runs this process alone"
        ),
        flag_values=values,
    )
    flags.DEFINE_integer(
        "num_processes", None, "processes of the job (--coordinator)", flag_values=values
    )
    flags.DEFINE_integer("process_id", None, "index of this process, from 0", flag_values=values)


def initialize(values: flags.FlagValues, environment: Mapping[str, str] | None = None) -> None:
    """Joins the job's other processes, if the flags or the environment speak of any.

    Raises:
        InputError: flags or variables that do not fit together, a cluster that JAX cannot ask, or
            GPUs that would be used twice or never.
    """
    environment = os.environ if environment is None else environment
    arguments = join_arguments(values, environment)
    if arguments is None:
        return
    if values.num_processes is not None:
        _take_number(values.coordinator, values.process_id)
    if arguments.get("process_id") == 0:
        _check_port(arguments["coordinator_address"])
    _join(arguments)
    _divide_gpus(environment)


def join_arguments(
    values: flags.FlagValues, environment: Mapping[str, str]
) -> dict[str, Any] | None:
    """What `jax.distributed.initialize` is given; None for a process that is alone.

    Raises:
        InputError: see `initialize`.
    """
    coordinator, explicit = values.coordinator, (values.num_processes, values.process_id)
    # By itself JAX takes one GPU for each process of Slurm or MPI; see `_divide_gpus`.
    arguments: dict[str, Any] = {"local_device_ids": []}
    if coordinator in ("", "auto", "none"):
        if explicit != (None, None):
            raise InputError(
                "--num_processes and --process_id need --coordinator=HOST:PORT of process 0"
            )
        job = None if coordinator == "none" else cluster.find_job(environment)
        if job and job.fault:
            raise InputError(f"{job.source}: {job.fault}")
        if job is None and coordinator == "auto":
            _check_kubernetes(environment)
        return arguments | job.arguments if job else arguments if coordinator == "auto" else None
    if not re.fullmatch(r".+:\d+", coordinator):
        raise InputError(
            f"--coordinator must be HOST:PORT of process 0, auto or none, got {coordinator}"
        )
    if None in explicit:
        raise InputError(
            f"--coordinator={coordinator} needs --num_processes and --process_id; add "
            "them, or use auto"
        )
    count, own = explicit
    if not 0 <= own < count:
        raise InputError(f"--process_id must be from 0 to {count - 1} (--num_processes), got {own}")
    return dict(arguments, coordinator_address=coordinator, num_processes=count, process_id=own)


def _check_kubernetes(environment: Mapping[str, str]) -> None:
    """TPU hosts find each other without its package, those with GPUs do not."""
    variables = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
    asks = "KUBERNETES_SERVICE_HOST" in environment and not any(v in environment for v in variables)
    if asks and find_spec("kubernetes") is None:
        raise InputError('--coordinator=auto asks Kubernetes here; pip install ".[gke]" first')


def _join(arguments: Mapping[str, Any]) -> None:
    """Waits for the others, in JAX's way, but ends with a line where that would be a core dump."""
    late = threading.Timer(JOIN_SECONDS, _end_alone)
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(**arguments)
    except Exception as error:
        # Of many kinds, of whatever the cluster is asked by.
        modules = [
            frame.f_globals["__name__"] for frame, _ in traceback.walk_tb(error.__traceback__)
        ]
        reason = " ".join(str(error).split())
        if isinstance(error, ValueError) and reason.endswith("defined."):
            raise InputError(
                "JAX finds no cluster here that lists the other processes; on TPU hosts "
                f'pip install "jax[tpu]" first, elsewhere pass {cluster.BY_HAND}, or '
                "--coordinator=none if this process is alone"
            ) from None
        if any(name.startswith("jax._src.clusters") for name in modules):
            raise InputError(
                f"the cluster does not list the other processes ({reason}); fix that, or "
                f"pass {cluster.BY_HAND}"
            ) from error
        raise
    finally:
        late.cancel()


def _check_port(address: str) -> None:
    """Where it is taken, JAX may crash, or share it with another job of this user."""
    if "JAX_COORDINATOR_BIND_ADDRESS" in os.environ:
        return
    try:
        with socket.socket() as server:
            # Connections of a job that has ended are no fault.
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("", int(address.rpartition(":")[2])))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"process 0 cannot listen on the port of {address} ({reason}); choose another "
            "one for all, by --coordinator or JAX_COORDINATOR_PORT"
        ) from error


def _end_alone() -> None:
    try:
        say(
            f"lost: some processes of this job did not join within {JOIN_SECONDS:.0f} "
            "seconds; start all of them with the same --coordinator, or pass "
            "--coordinator=none if this one is alone"
        )
    finally:
        os._exit(PREEMPTED)


def _divide_gpus(environment: Mapping[str, str]) -> None:
    """Has each process use its share of the GPUs that it sees, see `gpus.share`."""
    uuids, fault = [], ""
    try:
        uuids = gpus.visible(environment)
    except InputError as error:
        fault = str(error)
    # Devices may not be asked for before it is known which ones are this process's.
    views, faults = zip(*_tell_all(_GPUS, [uuids, fault]), strict=True)
    if fault := next(filter(None, faults), ""):
        raise InputError(fault)
    gpus.restrict(gpus.share(views, distributed.global_state.process_id))


def _tell_all(topic: str, word: Any) -> list[Any]:
    """What every process says on a topic, in their order, by JAX's store: it needs no devices.

    Args:
        topic: begins the keys; each is spoken of once.
        word: of this process, as JSON has it.
    """
    state = distributed.global_state
    client: Any = state.client
    client.key_value_set(f"{topic}{state.process_id}", json.dumps(word))
    client.wait_at_barrier(topic, int(JOIN_SECONDS * 1000))
    words = {int(key.removeprefix(topic)): x for key, x in client.key_value_dir_get(topic)}
    return [json.loads(words[number]) for number in range(len(words))]


def _take_number(coordinator: str, own: int) -> None:
    """Keeps a second process of this host from taking the same number: both would wait for long."""
    name = re.sub(r"\W", "_", f"imagen_ft_{os.getuid()}_{coordinator}_{own}") + ".lock"
    # What it would fall back to stays behind a process that is killed.
    lock = FileLock(os.path.join(temporary_folder(), name), fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise InputError(
            f"--process_id={own} is taken by another process of the job at {coordinator}; "
            "give each its own"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    _NUMBERS.append(lock)


def check_joined() -> None:
    """Looks whether the processes that the devices speak of have found each other, and see as many.

    Raises:
        InputError: they have not: preemption and saving would be each one's own affair; or one of
            them has other devices, such as none but its CPU.
    """
    if not jax.distributed.is_initialized():
        if jax.process_count() > 1:
            raise InputError(
                f"this is one of {jax.process_count()} processes that have not found each "
                "other; add --coordinator=auto"
            )
        return
    first, *others = _tell_all(_DEVICES, [jax.local_device_count(), jax.default_backend()])
    for number, other in enumerate(others, start=1):
        if other != first:
            raise InputError(
                f"process {number} sees {_devices(*other)}, process 0 sees "
                f"{_devices(*first)}; all processes of a job need the same number and kind"
            )


def _devices(count: int, platform: str) -> str:
    return f"{count} {platform} device{'s' if count > 1 else ''}"
