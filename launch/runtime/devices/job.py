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

    `settings` must be equal on all, see `distributed.check_same`; if not, or if the processes
    cannot join (`joining.initialize`), all raise `InputError`.
    """
    # 1. Find each other.
    joining.initialize(values)
    joining.check_joined()
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        task()
        return
    # 2. Watch each other from here on: a lost process would leave the rest waiting.
    peers.watch()
    try:
        distributed.check_same(settings())
        task()
    # 3. Errors that all processes agreed on end all of them the same way.
    except (InputError, Failed):
        raise
    except Exception as error:
        # If another process is lost, a step fails with errors of many types: leave it to the watch
        # to find out. A full disk is this process's own.
        if not (isinstance(error, OSError) and users_error(error)):
            peers.wait_for_the_end()
        raise


def exit_code(command: Callable[[], None], interrupted: str) -> int:
    """`cli.exit_code` for a command that may be one of several processes; tells the others."""
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
    """The flags and the code version that all processes of a job must have in common.

    `paths` names flags that are paths, maybe spelled differently; `without`, those that may differ.
    """
    names = [n for n in values if n not in ("coordinator", "process_id", *without)]
    common = {f"--{name}": values[name].value for name in names}
    for name in paths:
        path = str(values[name].value)
        common[f"--{name}"] = os.path.realpath(path) if is_local(epath.Path(path)) else path
    return {**common, distributed.CODE: code_version()}
