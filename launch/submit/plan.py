"""What a job needs to be started: files to write and commands to run, first of all as text."""

import contextlib
import dataclasses
import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from launch.errors import InputError
from launch.files import write_atomic

# What to do where a program is missing.
_INSTALL = {
    "gcloud": "install the Google Cloud CLI and log in (gcloud auth login)",
    "kubectl": "install it and log in to the cluster (gcloud container clusters get-credentials)",
    "sbatch": "run this on a login node of the Slurm cluster",
    "sky": 'pip install "skypilot[gcp]" and look at `sky check`',
}


@dataclasses.dataclass(frozen=True)
class Command:
    """A command line of another program.

    Attributes:
        argv: the program and its arguments.
        input: what it reads from its standard input.
        variables: names of environment variables that it reads there instead, as lines NAME=value;
            so no value is in a file, a log or a list of processes.
    """

    argv: tuple[str, ...]
    input: str = ""
    variables: tuple[str, ...] = ()

    def __str__(self) -> str:
        """As a shell would run it; values of variables are not told."""
        line = shlex.join(self.argv)
        if self.variables:
            lines = "".join(f"{name}=${{{name}}}\n" for name in self.variables)
            return f"{line} <<END\n{lines}END"
        # A quoted word keeps a shell from replacing anything.
        return f"{line} <<'END'\n{self.input.rstrip()}\nEND" if self.input else line

    def stdin(self) -> str:
        """What is written to its standard input."""
        return "".join(f"{name}={os.environ[name]}\n" for name in self.variables) or self.input


@dataclasses.dataclass(frozen=True)
class TextFile:
    """A file to be written before the commands are run."""

    path: Path
    text: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """Files, then commands, in their order.

    Attributes:
        files: to be written first.
        commands: to be run.
        by_hand: says that the user runs the commands; empty where we do.
    """

    files: tuple[TextFile, ...] = ()
    commands: tuple[Command, ...] = ()
    by_hand: str = ""

    def __str__(self) -> str:
        """What --dry_run prints: a shell script that would do the same."""
        folders = dict.fromkeys(shlex.quote(str(file.path.parent)) for file in self.files)
        blocks = [f"mkdir -p {' '.join(folders)}\n"] if folders else []
        for file in self.files:
            path = shlex.quote(str(file.path))
            blocks.append(f"cat > {path} <<'END'\n{file.text.rstrip()}\nEND\n")
        blocks += [f"{command}\n" for command in self.commands]
        return "\n".join(blocks)

    def write(self) -> None:
        """Writes the files."""
        for file in self.files:
            file.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file.path, file.text.encode())

    def remove(self) -> None:
        """Removes the files, and the folders that are empty without them."""
        for file in self.files:
            file.path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                file.path.parent.rmdir()


def run(command: Command, missing_ok: Sequence[str] = ()) -> str:
    """Runs a command to its end.

    Args:
        command: of a program that says on stderr what went wrong.
        missing_ok: parts of such messages that mean that what it is about is not there.

    Returns:
        What it has printed; empty where that was not there.

    Raises:
        InputError: the program is not installed, or has failed; with its own words.
    """
    try:
        done = subprocess.run(
            command.argv, input=command.stdin(), capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise missing(command.argv[0]) from None
    if done.returncode == 0:
        return done.stdout
    if any(part in done.stderr for part in missing_ok):
        return ""
    raise InputError(f"{said_by(command, done.returncode, done.stderr)}; fix that and run it again")


def stream(command: Command) -> int:
    """Runs a command whose output goes to the terminal as it comes; returns its exit code.

    Raises:
        InputError: the program is not installed.
    """
    try:
        return subprocess.run(command.argv, input=command.stdin() or None, text=True).returncode
    except FileNotFoundError:
        raise missing(command.argv[0]) from None


def missing(program: str) -> InputError:
    """The error of a program that is not installed."""
    return InputError(f"{program} is not installed; {_INSTALL.get(program, 'install it')}")


def said_by(command: Command, code: int, stderr: str) -> str:
    """One line on a command that has failed: its first words, its code, its last line of text."""
    words = [word for word in command.argv if not word.startswith("-")][:4]
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    # gcloud and kubectl begin the line that matters so; more advice follows it.
    errors = [line for line in lines if line.lower().startswith(("error", "fatal"))]
    reason = (errors or lines[-1:] or ["no output"])[0]
    return f"{' '.join(words)} failed (exit code {code}): {reason}"
