"""Jobs of several processes: how they find each other, and agree before they begin."""

import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import flags
from filelock import FileLock, Timeout
from jax.experimental import multihost_utils

from launch.errors import InputError, users_error
from launch.files import differences, temporary_folder

# Until this process ends.
_NUMBERS: list[FileLock] = []


def define_flags(values: flags.FlagValues) -> None:
    """The flags that `initialize` reads."""
    flags.DEFINE_string(
        "coordinator",
        "",
        "HOST:PORT of process 0 in a job of several processes, or 'auto' to ask the cluster (TPU "
        "VM, Slurm, GKE); Slurm and TPU jobs that say so in their environment need no flag",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "num_processes", None, "processes of the job (--coordinator)", flag_values=values
    )
    flags.DEFINE_integer(
        "process_id", None, "which of them this one is, from 0", flag_values=values
    )


def initialize(values: flags.FlagValues, environment: Mapping[str, str] | None = None) -> None:
    """Joins the job's other processes, if the flags or the environment speak of any.

    Raises:
        InputError: flags that do not fit together.
    """
    coordinator, environment = values.coordinator, environment or os.environ
    explicit = (values.num_processes, values.process_id)
    if coordinator in ("", "auto"):
        if explicit != (None, None):
            raise InputError(
                "--num_processes and --process_id go with --coordinator=HOST:PORT of process 0"
            )
        if coordinator == "auto" or is_one_of_several(environment):
            jax.distributed.initialize()
        return
    if not re.fullmatch(r".+:\d+", coordinator):
        raise InputError(f"--coordinator={coordinator}: HOST:PORT of process 0 is needed, or auto")
    if None in explicit:
        raise InputError(
            f"--coordinator={coordinator} needs --num_processes and --process_id, or use auto"
        )
    count, own = explicit
    if not 0 <= own < count:
        raise InputError(f"--process_id={own} is not in 0 .. {count - 1} (--num_processes)")
    _take_number(coordinator, own)
    jax.distributed.initialize(coordinator, num_processes=count, process_id=own)


def _take_number(coordinator: str, own: int) -> None:
    """Keeps a second process of this host from taking the same number: both would wait for long."""
    name = re.sub(r"\W", "_", f"imagen_ft_{os.getuid()}_{coordinator}_{own}") + ".lock"
    lock = FileLock(os.path.join(temporary_folder(), name))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise InputError(
            f"--process_id={own}: a process of the job at {coordinator} has this number already; "
            "give each its own"
        ) from None
    _NUMBERS.append(lock)


def check_same(settings: Mapping[str, Any]) -> None:
    """Compares what the processes of this job were started with.

    Args:
        settings: what has to be the same on all, as JSON has it; nested.

    Raises:
        InputError: names the field and the processes.
    """
    own = json.dumps(settings)
    first, *others = (json.loads(text) for text in gather_texts(own))
    for number, other in enumerate(others, start=1):
        for field, (expected, value) in differences(first, other).items():
            raise InputError(
                f"process {number} was started with {field} = {value}, process 0 with {expected}: "
                "start all processes of a job alike"
            )


def check_joined() -> None:
    """Looks whether the processes that the devices speak of have found each other.

    Raises:
        InputError: they have not: preemption and saving would be each one's own affair.
    """
    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        raise InputError(
            f"this is one of {jax.process_count()} processes that have not found each other: add "
            "--coordinator=auto"
        )


def is_one_of_several(environment: Mapping[str, str]) -> bool:
    """Whether a cluster's environment variables speak of more than one process."""
    tasks = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS", "1")
    workers = environment.get("TPU_WORKER_HOSTNAMES", "")
    slices = environment.get("MEGASCALE_NUM_SLICES", "1")
    in_step = "SLURM_PROCID" in environment and int(tasks) > 1
    return in_step or "," in workers or int(slices) > 1


def on_first_process(action: Callable[[], None]) -> None:
    """Runs an action on process 0; if it finds wrong input or a full disk, every process says so.

    Raises:
        InputError: of the action.
    """
    agree(action if jax.process_index() == 0 else None)


def decide_on_first_process(decision: Callable[[], Any]) -> Any:
    """What a function returns on process 0, on every process; called there alone.

    Args:
        decision: gives what JSON can say, and comes back so: a tuple as a list.

    Raises:
        InputError: of the function.
    """
    decisions: list[Any] = []
    on_first_process(lambda: decisions.append(decision()))
    return from_first_process(decisions[0] if decisions else None)


def from_first_process(value: Any) -> Any:
    """The value of process 0 on every process, as JSON gives it back; all have to call it."""
    own = json.dumps(value) if jax.process_index() == 0 else ""
    return json.loads(gather_texts(own)[0])


def agree(action: Callable[[], None] | None) -> None:
    """Runs an action on every process; what one of them cannot do, all of them say.

    Without, the others would wait for it at their next common step, for minutes.

    Args:
        action: of this process, which has no step in common with others; None does nothing.

    Raises:
        InputError: of the first process that found wrong input, a full disk or the like.
    """
    message = ""
    try:
        if action is not None:
            action()
    except InputError as error:
        message = str(error) or "wrong input"
    except OSError as error:
        message = users_error(error) or ""
        if jax.process_count() == 1 or not message:
            raise
    if message := next(filter(None, gather_texts(message)), ""):
        raise InputError(message)


def gather_texts(text: str) -> list[str]:
    """The texts of all processes in their order; all have to call it. Cheap where all are empty."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(data))))
    if not sizes.any():
        return [""] * len(sizes)
    # Each length compiles a program of its own.
    length = max(1024, 1 << int(sizes.max() - 1).bit_length())
    rows = multihost_utils.process_allgather(np.pad(data, (0, length - len(data))))
    return [
        row[:size].tobytes().decode() for row, size in zip(np.asarray(rows), sizes, strict=True)
    ]
