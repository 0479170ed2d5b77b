"""Measures what an attempt to train spends its time on, and records it: see `launch.goodput`."""

import contextlib
import dataclasses
import functools
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from etils import epath

from launch.errors import Diverged, Failed, Preempted, outcome
from launch.goodput import GOODPUT, KINDS, PRODUCTIVE, Attempt, ended_badly, read_run, stuck_at
from launch.runtime.checkpoints.inference import latest_step
from launch.runtime.devices.distributed import decide_on_first_process

# The next line is written when the last is older than this, in seconds and as a share of the
# attempt: the number of lines grows with the logarithm of its length.
_SECONDS, _SHARE = 1.0, 1e-2
# After an attempt that ended badly, this many steps from its end are each recorded, so that the
# next attempt knows whether it ends at the same one.
_WATCHED = 1000
# Steps whose end is waited for: the first compiles, the next ones show how long a step takes.
_TIMED_STEPS = 3
_ERROR_CHARACTERS = 200
_ENDS = {Preempted: "preempted", Diverged: "diverged", KeyboardInterrupt: "interrupted"}
# The age of the process counts as start-up of its first attempt only: a study makes many.
_is_age_counted = False


def begin(workdir: epath.Path) -> "Ledger":
    """The ledger of an attempt that starts now; every process must call it.

    Raises `Failed` if three attempts in a row ended at the same step, see `launch.goodput`.
    """
    earlier: list[Attempt] = []

    def refusal() -> str:
        earlier.extend(read_run(workdir))
        step = stuck_at(earlier, latest_step(workdir) or 0)
        return "" if step is None else _refusal(workdir, step, earlier[-1])

    if reason := decide_on_first_process(refusal):
        raise Failed(reason)
    return Ledger(earlier)


def _refusal(workdir: epath.Path, step: int, last: Attempt) -> str:
    end = (
        f"the last by {last.error}" if last.error else f"the last was killed ({KINDS[last.doing]})"
    )
    return (
        f"{workdir}: three attempts in a row ended at step {step}, {end}; fix the cause, "
        f"remove {workdir / GOODPUT}, and run the same command again"
    )


class Ledger:
    """The time of one attempt. Every moment is of exactly one kind, so the kinds add up."""

    def __init__(
        self, earlier: Sequence[Attempt] = (), clock: Callable[[], float] = time.perf_counter
    ):
        """Starts to count; `clock` is in seconds, `earlier` are the attempts before."""
        self._earlier, self._clock = tuple(earlier), clock
        self._reached = max((attempt.last_step for attempt in earlier), default=0)
        # A step at or below `_reached` was made before: it is "repeated", not productive.
        self._watched = range(0)
        if earlier and ended_badly(earlier[-1]):
            step = earlier[-1].last_step
            self._watched = range(step, step + _WATCHED)
        self._append: Callable[[str], None] | None = None
        self._kind, self._seconds = "startup", dict.fromkeys(KINDS, 0.0)
        self._created = self._since = self._written = clock()
        self._began = time.time()
        self._first_step = self._step = 0
        # Estimates: when the steps under way will have ended, and how long one takes, in seconds.
        self._busy_until, self._step_began, self._step_seconds = 0.0, 0.0, float("inf")

    def start(self, first_step: int, append: Callable[[str], None]) -> None:
        """Call once there is a state, before step `first_step`; `append` writes lines to a file."""
        # What the process did before this ledger existed, imports above all, is start-up.
        global _is_age_counted
        if not _is_age_counted and _is_command():
            before = max(0.0, process_age() - (self._clock() - self._created))
            self._seconds["startup"] += before
            self._created, self._began = self._created - before, self._began - before
        _is_age_counted = True
        self._first_step, self._step, self._append = first_step, first_step - 1, append
        self.note()

    @property
    def attempts(self) -> list[Attempt]:
        """The earlier attempts, and this one so far."""
        number = self._earlier[-1].number + 1 if self._earlier else 1
        work = dict(self._seconds), self._first_step, self._step, self._kind
        return [*self._earlier, Attempt(number, _process(), self._began, *work)]

    @contextlib.contextmanager
    def doing(self, kind: str) -> Iterator[None]:
        """Counts the block as `kind`; the steps under way must have ended before it."""
        before = self._kind
        self._turn_to(kind)
        self._note_if_due()
        yield
        # No `finally`: an attempt that fails in the block should record what it was doing.
        self._busy_until = self._turn_to(before)

    def begin_step(self, step: int) -> None:
        """Call before a step is dispatched."""
        self._step = step
        self._step_began = self._turn_to("compile" if self._is_first() else self._kind_of_steps())
        self._note_if_due()

    def is_timed(self) -> bool:
        """Whether to wait for the step under way, because its duration is needed."""
        return self._step < self._first_step + _TIMED_STEPS

    def end_step(self) -> None:
        """Call when the step is dispatched or, if it is timed, has ended."""
        now = self._turn_to(self._kind_of_steps())
        if not self.is_timed():
            # Steps queue up behind each other on the device.
            self._busy_until = max(self._busy_until, self._step_began) + self._step_seconds
            return
        self._busy_until = now
        if not self._is_first():
            # The fastest: a slow one may have waited for something else.
            self._step_seconds = min(self._step_seconds, now - self._step_began)

    def waited(self, seconds: float) -> None:
        """Call after waiting `seconds` for a batch. Only time when the device was idle counts."""
        now, kind = self._turn_to(self._kind), self._kind
        if self._step >= self._first_step:
            idle = min(seconds, max(0.0, now - self._busy_until))
            self._seconds[kind] -= idle
            self._seconds["data"] += idle

    def note(self) -> None:
        """Records the current state of the attempt."""
        self._turn_to(self._kind)
        self._write(self.attempts[-1])

    def end(self, error: BaseException | None) -> None:
        """Records how the attempt ended; None means that it is done."""
        self._turn_to(self._kind)
        attempt, end, code, text = self.attempts[-1], "done", 0, ""
        if error is not None:
            end = next((word for kind, word in _ENDS.items() if isinstance(error, kind)), "failed")
            code = 130 if end == "interrupted" else (outcome(error) or (1, ""))[0]
            text = " ".join(f"{type(error).__name__}: {error}".split())
            text = text[:_ERROR_CHARACTERS].removesuffix(":")
        self._write(dataclasses.replace(attempt, end=end, exit_code=code, error=text))

    def _is_first(self) -> bool:
        return self._step == self._first_step

    def _kind_of_steps(self) -> str:
        return "repeated" if self._step <= self._reached else PRODUCTIVE

    def _turn_to(self, kind: str) -> float:
        # Count the time up to now, then switch.
        now = self._clock()
        self._seconds[self._kind] += now - self._since
        self._kind, self._since = kind, now
        return now

    def _note_if_due(self) -> None:
        age = self._since - self._created
        is_due = self._since - self._written >= max(_SECONDS, _SHARE * age)
        if is_due or self._step in self._watched:
            self.note()

    def _write(self, attempt: Attempt) -> None:
        if self._append:
            self._written = self._since
            self._append(attempt.to_line())


def _is_command() -> bool:
    # `python -m ...` sets it. The age of a notebook is nobody's start-up.
    return getattr(sys.modules["__main__"], "__spec__", None) is not None


@functools.cache
def _process() -> str:
    # The start time tells apart process numbers that are used again, by containers at once.
    return f"{os.uname().nodename}:{os.getpid()}:{time.time() - process_age():.2f}"


def process_age() -> float:
    """Seconds since this process started."""
    try:
        # proc(5): the process name, in brackets, may hold any characters. Field 22 of the file, the
        # 20th after it, is the start time in clock ticks since boot.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks
    except (AttributeError, IndexError, OSError, ValueError):
        return _age_by_ps()


def _age_by_ps() -> float:
    # Where there is no /proc, as on macOS: in whole seconds; 0 if ps fails.
    command = ["ps", "-o", "etime=", "-p", str(os.getpid())]
    try:
        text = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0.0
    # [[days-]hours:]minutes:seconds
    parts = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)", text.strip())
    days, hours, minutes, seconds = map(int, parts.groups("0")) if parts else (0, 0, 0, 0)
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
