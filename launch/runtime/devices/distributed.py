"""What the processes of a job tell each other, and how they agree before they start."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from launch.errors import InputError, users_error
from launch.files import differences

# The setting that `check_same` reports first: other code may have other flags and fields.
CODE = "the code"


def check_same(settings: Mapping[str, Any]) -> None:
    """Raises `InputError`, naming a field, unless all processes have the same nested settings."""
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
    """Runs an action on process 0; every process raises its `InputError`, see `agree`."""
    agree(action if jax.process_index() == 0 else None)


def decide_on_first_process(decision: Callable[[], Any]) -> Any:
    """The result of a function on process 0, through JSON, on all; all raise its `InputError`."""
    decisions: list[Any] = []
    on_first_process(lambda: decisions.append(decision()))
    return from_first_process(decisions[0] if decisions else None)


def from_first_process(value: Any) -> Any:
    """The value of process 0, after a trip through JSON; every process must call this."""
    own = json.dumps(value) if jax.process_index() == 0 else ""
    return json.loads(gather_texts(own)[0])


def agree(action: Callable[[], None] | None) -> None:
    """Runs an action on every process; if one of them fails, all of them raise `InputError`.

    Otherwise the others would wait for it at their next collective, for minutes. The action must
    contain no collective itself; None does nothing. Full disks count as wrong input here.
    """
    message = ""
    try:
        if action is not None:
            action()
    except InputError as error:
        message = str(error) or "wrong input"
    except OSError as error:
        message = users_error(error) or ""
        # A bug is raised at once; alone, a full disk stays the OSError that it is.
        if jax.process_count() == 1 or not message:
            raise
    if message := next(filter(None, gather_texts(message)), ""):
        raise InputError(message)


def gather_texts(text: str) -> list[str]:
    """The texts of all processes, in order; all must call this. Cheap if all are empty."""
    if jax.process_count() == 1:
        return [text]
    # 1. Gather the lengths.
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(data))))
    if not sizes.any():
        return [""] * len(sizes)
    # 2. Gather the texts, padded to a power of two: every length compiles its own program.
    length = max(1024, 1 << int(sizes.max() - 1).bit_length())
    rows = multihost_utils.process_allgather(np.pad(data, (0, length - len(data))))
    return [
        row[:size].tobytes().decode() for row, size in zip(np.asarray(rows), sizes, strict=True)
    ]
