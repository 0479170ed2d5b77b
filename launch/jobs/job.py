"""A command line as a process of its own: its progress, how it ended, what it left behind."""

import collections
import contextlib
import ctypes
import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from launch.errors import PREEMPTED, Failed, Preempted

# Seconds in which an output must appear: network file systems show other hosts' files late.
_GRACE = 30.0


@dataclasses.dataclass(frozen=True)
class Job:
    """One command line, a step of a study; it runs again if its output or an input changes."""

    name: str  # unique; also names its log and its mark
    command: tuple[str, ...]  # arguments after `python -m`
    inputs: tuple[Path, ...]  # files that it reads; a changed one makes it run again
    output: Path  # what it makes; a missing one makes it run again
    after: tuple[str, ...] = ()  # names of the steps that must be done first
    seconds: float = 10.0  # rough duration relative to other steps, for the overall progress bar
    digest: str = ""  # of what else decides its output; a change makes it run again


class JobFailed(Failed):
    """A command line ended with an error; `code` is its exit code."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code
        self.word = Preempted.word if code == PREEMPTED else self.word


class Child:
    """A running step."""

    def __init__(
        self, step: Job, workdir: Path, env: Mapping[str, str], command_line: Sequence[str]
    ):
        self.step, self.progress, self._error = step, "starting", ""  # progress: its last line
        # The last line of a traceback alone often does not say what happened.
        self._last: collections.deque[str] = collections.deque(maxlen=12)
        self.seconds, self.peak_memory_bytes = 0.0, 0  # known when it has ended
        self._log = workdir / "logs" / f"{step.name}.log"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._start = time.perf_counter()
        self._process = start(command_line, env)
        self._reader = threading.Thread(
            target=self._read, args=(self._process.stdout,), daemon=True
        )
        self._reader.start()

    def _read(self, pipe: IO[bytes]) -> None:
        rest = b""
        with pipe:
            while chunk := os.read(pipe.fileno(), 65536):
                # A full disk costs log lines; it must not block the step, which would fill the
                # pipe.
                with contextlib.suppress(OSError), self._log.open("ab") as log:
                    log.write(chunk)
                # Progress bars end their lines with \r.
                *lines, rest = re.split(rb"[\r\n]", rest + chunk)
                for line in filter(bytes.strip, lines):
                    self.progress = line.decode(errors="replace").strip()
                    self._last.append(self.progress)
                    if error := re.match(rf"({Failed.word}|{Preempted.word}): (.+)", self.progress):
                        self._error = error[2]

    def ended(self) -> bool:
        """Whether it ended well and its output is there; raises `JobFailed` if it ended badly."""
        if self._process.returncode is None and not self._reap():
            return False
        # 1. A bad end: quote its own error line, or else the last lines that it printed.
        code = self._process.returncode
        if code:
            how = f"exit code {code}" if code > 0 else f"killed by signal {-code}"
            said = self._error or " | ".join(self._last)
            reason = f"{self.step.name}: {said} ({how}, log: {self._log})"
            raise JobFailed(reason, code if code in (2, PREEMPTED) else 1)
        # 2. A good end, but the output may take a while to appear.
        if self.step.output.exists():
            return True
        if time.perf_counter() - self._start - self.seconds > _GRACE:
            raise JobFailed(
                f"{self.step.name}: exited with 0, but {self.step.output} is missing; the launcher "
                f"must wait for it to finish (log: {self._log})",
                1,
            )
        return False

    def _reap(self) -> bool:
        """Collects the exit code, if there is one by now."""
        # wait4 also tells this child's peak memory; resource.getrusage mixes those of all children.
        pid, status, usage = os.wait4(self._process.pid, os.WNOHANG)
        if not pid:
            return False
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self._reader.join()
        self.seconds = time.perf_counter() - self._start
        # The peak of its largest process; macOS counts bytes, Linux KiB.
        self.peak_memory_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return True

    def terminate(self) -> None:
        """Asks it to save and exit, by SIGTERM to all of its processes."""
        if self._process.returncode is None:
            # It may have ended just now.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)

    def wait(self) -> None:
        """Waits until it has ended."""
        if self._process.returncode is None:
            self._process.wait()
            self._reader.join(timeout=1.0)


# Loaded here: after a fork in a process with threads, loading a library could deadlock.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def start(command_line: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Starts a process that dies with this one, whose stdout and stderr share one pipe.

    `env` is added to our environment variables.
    """
    with warnings.catch_warnings():
        # JAX warns of every fork once it is imported; this child only executes another program.
        warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
        return subprocess.Popen(
            command_line,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **env},
            preexec_fn=_die_with_parent,
            # A group of its own: what a launcher starts can be ended with it, and Ctrl-C reaches
            # only this process, which then ends its children in order.
            process_group=0,
        )


def _die_with_parent() -> None:
    # A killed runner must not leave steps behind that write to the files of its successor's steps.
    if _LIBC is not None:
        _LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
