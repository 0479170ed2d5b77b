"""The command line after `--`: which task it is, and whether that task accepts it."""

import dataclasses
import functools
import importlib.util
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Sequence

from launch.errors import InputError

SYNTAX = "python -m launch.submit MODE [options] -- python -m TASK --config=FILE --workdir=DIR"
_PYTHON = re.compile(r"python[0-9.]*")
_FLAG = re.compile(r"^  --(\w+)", re.MULTILINE)  # a line of --help


@dataclasses.dataclass(frozen=True)
class Task:
    """A command line `python -m MODULE ARGUMENTS`."""

    module: str
    arguments: tuple[str, ...]

    @classmethod
    def of(cls, argv: Sequence[str]) -> "Task":
        """Reads what comes after `--`; `InputError` unless it is `python -m` and a module here."""
        if len(argv) < 3 or not _PYTHON.fullmatch(os.path.basename(argv[0])) or argv[1] != "-m":
            line = " ".join(argv) or "nothing"
            raise InputError(f"after -- must come python -m TASK ..., got {line}; {SYNTAX}")
        task = cls(argv[2], tuple(argv[3:]))
        if not task._is_here():
            raise InputError(f"there is no module {task.module!r}; after -- comes python -m TASK")
        return task

    def _is_here(self) -> bool:
        try:
            return importlib.util.find_spec(self.module) is not None
        except (ImportError, ValueError):
            return False

    @property
    def argv(self) -> tuple[str, ...]:
        """The command line on a host, where `python` is the one that the code is installed in."""
        return ("python", "-m", self.module, *self.arguments)

    def value(self, flag: str) -> str:
        """The last value of `--flag=value` or `--flag value`; '' if there is none."""
        found = ""
        for word, following in itertools.pairwise((*self.arguments, "")):
            name, equals, value = word.lstrip("-").partition("=")
            if word.startswith("-") and name == flag:
                found = value if equals else following
        return found

    @property
    def workdir(self) -> str:
        """Its work directory; '' if it has none."""
        return self.value("workdir")

    @functools.cached_property
    def flags(self) -> frozenset[str]:
        """The names of its flags; raises `InputError` if the module is not a command."""
        # From --help in a process of its own: importing the module here would load JAX.
        done = _python("-m", self.module, "--help")
        names = _FLAG.findall(done.stdout)
        if done.returncode or not names:
            raise InputError(f"python -m {self.module} --help lists no flags, so it is not a task")
        return frozenset(names)

    def check(self, preflight: str = "") -> None:
        """Lets the task check its arguments on this machine, without running it.

        `preflight` is the value for --preflight; without it, --dry_run. Raises `InputError` with
        the task's own message.
        """
        if "workdir" in self.flags and not self.workdir:
            raise InputError("--workdir is missing after --; pass the run directory")
        if "dry_run" not in self.flags:
            return
        check = f"--preflight={preflight}" if preflight else "--dry_run"
        done = _python("-m", self.module, *self.arguments, check)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            errors = [line for line in lines if line.startswith("error: ")]
            reason = (errors or lines[-1:] or [f"exit code {done.returncode}"])[-1]
            raise InputError(
                f"the task rejects its input ({check}): {reason.removeprefix('error: ')}"
            )


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    # As a single process on a CPU, whatever accelerator or cluster this machine belongs to.
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, *arguments]
    if "-m" in arguments:
        command.append("--coordinator=none")
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
