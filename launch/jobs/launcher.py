"""Flags of tasks that run other tasks as their own processes: how many at a time, and how."""

import shlex
import shutil
import sys

from absl import flags

from launch.errors import InputError

FLAGS_TITLE = "started jobs"  # in --help


def define_flags(values: flags.FlagValues) -> None:
    """Defines `jobs` and the flags that `launcher` reads."""
    flags.DEFINE_integer("jobs", 1, "commands to run at a time", lower_bound=1, flag_values=values)
    flags.DEFINE_string(
        "submit",
        "",
        (
            "command that starts each of them, such as 'srun --gpus=8' or 'env "
            "CUDA_VISIBLE_DEVICES={lane}'; it must wait until they finish"
        ),
        flag_values=values,
    )
    flags.DEFINE_string(
        "python",
        sys.executable,
        "Python to run them with, if not this one",
        flag_values=values,
    )


def options(values: flags.FlagValues) -> tuple[str, ...]:
    """What to append to every command."""
    # What starts here directly is not a process of the cluster's job, whatever its variables say.
    alone = not values.submit or values.coordinator == "none"
    return ("--coordinator=none",) if alone else ()


def launcher(values: flags.FlagValues) -> list[str]:
    """What to put before every command; raises `InputError` for no such program or bad quoting."""
    try:
        words = [*shlex.split(values.submit), values.python, "-m"]
    except ValueError as error:
        raise InputError(f"--submit={values.submit}: {error}") from None
    if not shutil.which(words[0]):
        flag = "--submit" if values.submit else "--python"
        raise InputError(f"{flag}: no such program: {words[0]!r}; use one on the PATH")
    return words
