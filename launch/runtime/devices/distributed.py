"""What the processes of a job tell each other, and how they agree before they begin."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from launch.errors import InputError, users_error
from launch.files import differences

# What `check_same` speaks of first: other code can have other flags and fields.
CODE = "the code"


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
        if different := differences(first, other):
            field = CODE if CODE in different else next(iter(different))
            expected, value = different[field]
            raise InputError(
                f"process {number} was started with {field} = {value}, process 0 with "
                f"{expected}; start all processes of a job alike"
            )


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
