"""A command line as a process of its own: its progress, its end, what it left."""

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

# In seconds. A network file system shows late what another host has made.
_GRACE = 30.0


@dataclasses.dataclass(frozen=True)
class Job:
    """One command line.

    Attributes:
        name: unique; names its log and its mark too.
        command: arguments behind `python -m`.
        inputs: files that the command reads; a step is run again where one has changed.
        output: what it makes; a step whose output is gone is run again.
        after: names of the steps that have to be done before.
        seconds: what it takes compared with the others, roughly, for the overall bar.
        digest: of what else decides what it makes; a step is run again where that has changed.
    """

    name: str
    command: tuple[str, ...]
    inputs: tuple[Path, ...]
    output: Path
    after: tuple[str, ...] = ()
    seconds: float = 10.0
    digest: str = ""


class JobFailed(Failed):
    """A command line has ended with an error.

    Attributes:
        code: its exit code.
    """

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code
        self.word = Preempted.word if code == PREEMPTED else self.word


class Child:
    """A running step.

    Attributes:
        step: what runs.
        progress: the last line that it has printed.
        seconds: how long it ran, once it has ended.
        peak_memory_bytes: of the largest of its processes, once it has ended.
    """

    def __init__(
        self, step: Job, workdir: Path, env: Mapping[str, str], command_line: Sequence[str]
    ):
        self.step, self.progress, self._error = step, "starting", ""
        # The last line of a traceback is often not the one that says what happened.
        self._last: collections.deque[str] = collections.deque(maxlen=12)
        self.seconds, self.peak_memory_bytes = 0.0, 0
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
                # A step must not wait for its log, not even on a full disk.
                with contextlib.suppress(OSError), self._log.open("ab") as log:
                    log.write(chunk)
                *lines, rest = re.split(rb"[\r\n]", rest + chunk)
                for line in filter(bytes.strip, lines):
                    self.progress = line.decode(errors="replace").strip()
                    self._last.append(self.progress)
                    if error := re.match(rf"({Failed.word}|{Preempted.word}): (.+)", self.progress):
                        self._error = error[2]

    def ended(self) -> bool:
        """Whether it has ended well, and its output can be seen.

        Raises:
            JobFailed: it has not ended well, or nothing was made.
        """
        if self._process.returncode is None and not self._reap():
            return False
        code = self._process.returncode
        if code:
            how = f"exit code {code}" if code > 0 else f"killed by signal {-code}"
            said = self._error or " | ".join(self._last)
            reason = f"{self.step.name}: {said} ({how}, log: {self._log})"
            raise JobFailed(reason, code if code in (2, PREEMPTED) else 1)
        if self.step.output.exists():
            return True
        if time.perf_counter() - self._start - self.seconds > _GRACE:
            raise JobFailed(
                f"{self.step.name}: exited with 0, but {self.step.output} is missing; the "
                f"launcher must wait for its end (log: {self._log})",
                1,
            )
        return False

    def _reap(self) -> bool:
        """Asks for the exit code; whether it has one."""
        pid, status, usage = os.wait4(self._process.pid, os.WNOHANG)
        if not pid:
            return False
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self._reader.join()
        self.seconds = time.perf_counter() - self._start
        self.peak_memory_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return True

    def terminate(self) -> None:
        """Tells it to save and leave."""
        if self._process.returncode is None:
            # It may just have ended.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)

    def wait(self) -> None:
        """Waits for its end."""
        if self._process.returncode is None:
            self._process.wait()
            self._reader.join(timeout=1.0)


# Loaded here: after a fork, beside other threads, it could wait for ever.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def start(command_line: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Starts a process that ends when this one is killed; its output is one pipe.

    Args:
        command_line: its program and arguments.
        env: environment variables on top of ours.
    """
    with warnings.catch_warnings():
        # JAX, where it is loaded, warns of every fork; this one only runs another program.
        warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
        return subprocess.Popen(
            command_line,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **env},
            preexec_fn=_die_with_parent,
            # A group of its own: what a launcher has started is ended with it, and Ctrl-C reaches
            # us alone, who tell it.
            process_group=0,
        )


def _die_with_parent() -> None:
    """A killed road must not leave steps behind that write beside the next one's."""
    if _LIBC is not None:
        _LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
