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
# JAX waits for 300 seconds, then aborts with a core dump; be earlier.
JOIN_SECONDS = 285.0
# Prefixes of keys in the coordination service's store.
_GPUS, _DEVICES = "launch/gpus/", "launch/devices/"
# Locks of the numbers that this process has taken, held until it ends.
_NUMBERS: list[FileLock] = []


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags that `initialize` reads, for commands of one process or several."""
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
    """Joins the job's other processes if the flags or the environment tell of any.

    Raises `InputError` for flags or variables that do not fit together, a cluster that JAX cannot
    ask, or GPUs that would be used twice or never.
    """
    # 1. Who are the others?
    environment = os.environ if environment is None else environment
    arguments = join_arguments(values, environment)
    if arguments is None:
        return
    # 2. Catch what would leave everyone waiting: a number taken twice, a port in use.
    if values.num_processes is not None:
        _take_number(values.coordinator, values.process_id)
    if arguments.get("process_id") == 0:
        _check_port(arguments["coordinator_address"])
    # 3. Wait for all to join, then share the GPUs, before JAX looks for devices.
    _join(arguments)
    _divide_gpus(environment)


def join_arguments(
    values: flags.FlagValues, environment: Mapping[str, str]
) -> dict[str, Any] | None:
    """Arguments of `jax.distributed.initialize`, or None if alone; raises as `initialize` does."""
    coordinator, explicit = values.coordinator, (values.num_processes, values.process_id)
    # By default JAX assigns one GPU to each process of Slurm or MPI; `_divide_gpus` does better.
    arguments: dict[str, Any] = {"local_device_ids": []}
    # 1. Nothing explicit: ask the environment.
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
    # 2. Explicit: all three flags are needed.
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
    # GPU hosts need the package to find each other, TPU hosts do not.
    variables = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
    asks = "KUBERNETES_SERVICE_HOST" in environment and not any(v in environment for v in variables)
    if asks and find_spec("kubernetes") is None:
        raise InputError('--coordinator=auto asks Kubernetes here; pip install ".[gke]" first')


def _join(arguments: Mapping[str, Any]) -> None:
    # JAX's own time-out aborts in C++, where no Python code can catch it.
    late = threading.Timer(JOIN_SECONDS, _end_alone)
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(**arguments)
    except Exception as error:
        # The types depend on what asks the cluster: tell its errors by the modules they pass.
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
    # JAX may crash on a port in use, or share it with another job of this user.
    if "JAX_COORDINATOR_BIND_ADDRESS" in os.environ:
        return
    try:
        with socket.socket() as server:
            # Connections left over from a job that has ended do not matter.
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
    uuids, fault = [], ""
    try:
        uuids = gpus.visible(environment)
    except InputError as error:
        fault = str(error)
    # Through the store: collectives need devices, and initialising them would fix the choice.
    views, faults = zip(*_tell_all(_GPUS, [uuids, fault]), strict=True)
    if fault := next(filter(None, faults), ""):
        raise InputError(fault)
    gpus.restrict(gpus.share(views, distributed.global_state.process_id))


def _tell_all(topic: str, word: Any) -> list[Any]:
    # What every process says, in order, through JAX's store, which needs no devices. A topic can be
    # used once.
    state = distributed.global_state
    client: Any = state.client
    client.key_value_set(f"{topic}{state.process_id}", json.dumps(word))
    client.wait_at_barrier(topic, int(JOIN_SECONDS * 1000))
    words = {int(key.removeprefix(topic)): x for key, x in client.key_value_dir_get(topic)}
    return [json.loads(words[number]) for number in range(len(words))]


def _take_number(coordinator: str, own: int) -> None:
    # Two processes with the same number would both wait a long time for the job.
    name = re.sub(r"\W", "_", f"imagen_ft_{os.getuid()}_{coordinator}_{own}") + ".lock"
    # The fallback, a file that exists, would outlive a killed process.
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
    """Raises `InputError` unless all processes that the devices know of have joined, and are alike.

    Without joining, each would handle preemption and saving alone. A process that sees another
    number or kind of devices, such as only its CPU, would hang the others.
    """
    # TPU runtimes know of other hosts even if JAX did not join them.
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
