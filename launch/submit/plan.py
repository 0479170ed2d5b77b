"""What starting a job takes, as text first: files to write and commands to run."""

import contextlib
import dataclasses
import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from launch.errors import InputError
from launch.files import write_atomic

# What to do if a program is missing.
_INSTALL = {
    "gcloud": "install the Google Cloud CLI and log in (gcloud auth login)",
    "kubectl": "install it and log in to the cluster (gcloud container clusters get-credentials)",
    "sbatch": "run this on a login node of the Slurm cluster",
    "sky": 'pip install "skypilot[gcp]" and look at `sky check`',
}


@dataclasses.dataclass(frozen=True)
class Command:
    """A command line of another program."""

    argv: tuple[str, ...]
    input: str = ""  # what it reads from stdin
    # Names of environment variables that it reads from stdin instead, as lines NAME=value: so that
    # no value is in a file, a log or the list of processes.
    variables: tuple[str, ...] = ()

    def __str__(self) -> str:
        """As for a shell; without values of variables."""
        line = shlex.join(self.argv)
        if self.variables:
            lines = "".join(f"{name}=${{{name}}}\n" for name in self.variables)
            return f"{line} <<END\n{lines}END"
        # Quoting END keeps the shell from expanding anything in the text.
        return f"{line} <<'END'\n{self.input.rstrip()}\nEND" if self.input else line

    def stdin(self) -> str:
        """The text for its stdin."""
        return "".join(f"{name}={os.environ[name]}\n" for name in self.variables) or self.input


@dataclasses.dataclass(frozen=True)
class TextFile:
    """A file to write before the commands run."""

    path: Path
    text: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """Files to write, then commands to run, in order."""

    files: tuple[TextFile, ...] = ()
    commands: tuple[Command, ...] = ()
    by_hand: str = ""  # tells the user to run the commands; '' if we do

    def __str__(self) -> str:
        """What --dry_run prints: a shell script that does the same."""
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
        """Removes the files, and their folders if that leaves them empty."""
        for file in self.files:
            file.path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                file.path.parent.rmdir()


def run(command: Command, missing_ok: Sequence[str] = ()) -> str:
    """Runs a command and returns its stdout.

    Returns '' instead if stderr contains one of `missing_ok`: what it is about does not exist.
    Raises `InputError`, with the program's own words, if it failed or is not installed.
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
    """Runs a command with its output on the terminal; returns its exit code.

    Raises `InputError` if the program is not installed.
    """
    try:
        return subprocess.run(command.argv, input=command.stdin() or None, text=True).returncode
    except FileNotFoundError:
        raise missing(command.argv[0]) from None


def missing(program: str) -> InputError:
    """The error for a program that is not installed."""
    return InputError(f"{program} is not installed; {_INSTALL.get(program, 'install it')}")


def said_by(command: Command, code: int, stderr: str) -> str:
    """One line on a failed command: its first words, its exit code, and its error."""
    words = [word for word in command.argv if not word.startswith("-")][:4]
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    # gcloud and kubectl mark the line that matters this way; more advice may follow it.
    errors = [line for line in lines if line.lower().startswith(("error", "fatal"))]
    reason = (errors or lines[-1:] or ["no output"])[0]
    return f"{' '.join(words)} failed (exit code {code}): {reason}"
