"""Processes that run side by side on this machine and end together."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from launch.errors import PREEMPTED
from launch.jobs.job import start

# Seconds that processes have to save and exit before they are killed.
GRACE = 120.0
# Exit codes after which the same command resumes the work: preempted, killed, or ended by SIGTERM.
GOES_ON = (PREEMPTED, 128 + signal.SIGKILL, 128 + signal.SIGTERM)
# A command's placeholder for a free port.
PORT = "PORT"


@contextlib.contextmanager
def listening() -> Iterator[list[int]]:
    """A block in which Ctrl-C, SIGTERM and a closed terminal are only added to the yielded list."""
    asked: list[int] = []
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup has it ignored.
        numbers.append(signal.SIGHUP)
    before = {n: signal.signal(n, lambda number, frame: asked.append(number)) for n in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            # None means a handler that was not set from Python.
            signal.signal(number, handler or signal.SIG_DFL)


def run_once(processes: Sequence[Sequence[str]], logs: Path, asked: Sequence[int]) -> int:
    """Runs processes side by side until all have ended; returns one exit code for all.

    A failure of one ends all. A first signal in `asked` tells all to save; a second one, or GRACE
    seconds, kills them. The code is 0 if all ended well, 130 after Ctrl-C, else that of the first
    failure; among simultaneous ones, a code that a restart would not help.
    """
    # 1. Start all.
    children = _start_all(processes, logs)
    told_at: float | None = None
    first_failed: list[Process] = []
    # 2. Wait for all; end all after the first failure or a signal.
    while any(child.code is None for child in children):
        failed = [child for child in children if child.poll()]
        # Once told to end, the others' failures are mere consequences: remember who was first.
        if told_at is None and (failed or asked):
            told_at, first_failed = time.monotonic(), failed
            _signal(children, signal.SIGTERM)
        elif told_at is not None and (len(asked) > 1 or time.monotonic() - told_at > GRACE):
            _signal(children, signal.SIGKILL)
        time.sleep(0.02)
    # 3. Read the rest of their output.
    for child in children:
        child.close()
    return outcome(first_failed or children, asked)


def outcome(children: Sequence["Process"], asked: Sequence[int]) -> int:
    """The exit code decided by `children`, which have ended; `asked` are the signals received."""
    codes = [child.code for child in children if child.code]
    if signal.SIGINT in asked and codes:
        return 130
    lasting = [code for code in codes if code not in GOES_ON]
    return (lasting or codes or [0])[0]


def _signal(children: Sequence["Process"], number: int) -> None:
    for child in children:
        child.signal(number)


def _start_all(processes: Sequence[Sequence[str]], logs: Path) -> list["Process"]:
    """Starts all or none; raises `OSError` if one cannot be started."""
    logs.mkdir(parents=True, exist_ok=True)
    # The system picks a free port. It may be taken before the coordinator opens it; that is rare.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children: list[Process] = []
    try:
        for rank, argv in enumerate(processes):
            words = [word.replace(f"127.0.0.1:{PORT}", f"127.0.0.1:{port}") for word in argv]
            show = sys.stdout.buffer.write if rank == 0 else None
            children.append(Process(words, logs / f"process-{rank}.log", show))
    except BaseException:
        _signal(children, signal.SIGKILL)
        raise
    return children


class Process:
    """One process of the job; its output goes to its log, and the first one's to stdout too."""

    def __init__(self, argv: Sequence[str], log: Path, show: Callable[[bytes], Any] | None):
        self.code: int | None = None  # 128 + signal if killed, as in a shell; None at first
        self._child = start(argv, {})
        arguments = (self._child.stdout, log, show)
        self._reader = threading.Thread(target=_copy, args=arguments, daemon=True)
        self._reader.start()

    def poll(self) -> bool:
        """Whether it has ended badly since the last call."""
        if self.code is not None or self._child.poll() is None:
            return False
        # Processes that it left behind, such as data-loading workers, still hold its device.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, signal.SIGKILL)
        code = self._child.returncode
        self.code = 128 - code if code < 0 else code
        return self.code != 0

    def signal(self, number: int) -> None:
        """Sends a signal to it and to the processes it has started."""
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, number)

    def close(self) -> None:
        """Waits for the rest of its output."""
        self._reader.join(timeout=5.0)


def _copy(pipe: IO[bytes], log: Path, show: Callable[[bytes], Any] | None) -> None:
    with pipe:
        while chunk := os.read(pipe.fileno(), 65536):
            # A full disk or a closed terminal must not block the process.
            with contextlib.suppress(OSError), log.open("ab") as file:
                file.write(chunk)
            if show:
                with contextlib.suppress(OSError, ValueError):
                    show(chunk)
                    sys.stdout.flush()
