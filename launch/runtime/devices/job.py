"""A command as one process of a job: it joins the others, and none of them is left waiting."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import flags
from etils import epath

from launch import cli
from launch.code_version import code_version
from launch.errors import Failed, InputError, users_error
from launch.files import is_local
from launch.runtime.devices import distributed, joining, peers


def run_together(
    values: flags.FlagValues,
    settings: Callable[[], dict[str, Any]],
    task: Callable[[], None],
) -> None:
    """Joins the other processes, if there are any, and runs a task that all of them run.

    Args:
        values: the flags, see `joining.define_flags`.
        settings: what all have to have been started with, see `distributed.check_same`.
        task: the work.

    Raises:
        InputError: see `joining.initialize`; the processes have not been started alike.
    """
    joining.initialize(values)
    joining.check_joined()
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        task()
        return
    peers.watch()
    try:
        distributed.check_same(settings())
        task()
    except (InputError, Failed):
        raise
    except Exception as error:
        # Of many kinds, where a process was lost that a step needs.
        if not (isinstance(error, OSError) and users_error(error)):
            peers.wait_for_the_end()
        raise


def exit_code(command: Callable[[], None], interrupted: str) -> int:
    """`cli.exit_code` of a command that may be one of several processes, which are told of it."""
    try:
        code = cli.exit_code(command, interrupted)
    except BaseException:
        peers.leave(1)
        raise
    peers.leave(code)
    return code


def settings(
    values: flags.FlagValues, paths: Sequence[str] = (), without: Sequence[str] = ()
) -> dict[str, Any]:
    """The flags and the code that all processes of a job have to have in common.

    Args:
        values: the flags.
        paths: names of those that are paths, which may be written in several ways.
        without: names of those that may differ.
    """
    names = [n for n in values if n not in ("coordinator", "process_id", *without)]
    common = {f"--{name}": values[name].value for name in names}
    for name in paths:
        path = str(values[name].value)
        common[f"--{name}"] = os.path.realpath(path) if is_local(epath.Path(path)) else path
    return {**common, distributed.CODE: code_version()}
