"""What an attempt to train spends its time on, written down as it goes: see `launch.goodput`."""

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

# A line is this old, in seconds and as a share of the attempt, before the next one is written.
_SECONDS, _SHARE = 1.0, 1e-2
# So many steps from where the last attempt has ended badly are all written down.
_WATCHED = 1000
# The first step compiles; the next ones tell how long one takes.
_TIMED_STEPS = 3
_ERROR_CHARACTERS = 200
_ENDS = {Preempted: "preempted", Diverged: "diverged", KeyboardInterrupt: "interrupted"}
# The time before a command's first training is that attempt's start-up, and no other's.
_is_age_counted = False


def begin(workdir: epath.Path) -> "Ledger":
    """The ledger of an attempt that begins now; every process calls it.

    Args:
        workdir: the run directory.

    Raises:
        Failed: the last attempts have all ended at the same step, see `launch.goodput`.
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
    """The time of one attempt: each moment is of one kind, so that the kinds add up to it."""

    def __init__(
        self, earlier: Sequence[Attempt] = (), clock: Callable[[], float] = time.perf_counter
    ):
        """Begins to count.

        Args:
            earlier: the attempts before.
            clock: in seconds.
        """
        self._earlier, self._clock = tuple(earlier), clock
        self._reached = max((attempt.last_step for attempt in earlier), default=0)
        self._watched = range(0)
        if earlier and ended_badly(earlier[-1]):
            step = earlier[-1].last_step
            self._watched = range(step, step + _WATCHED)
        self._append: Callable[[str], None] | None = None
        self._kind, self._seconds = "startup", dict.fromkeys(KINDS, 0.0)
        self._created = self._since = self._written = clock()
        self._began = time.time()
        self._first_step = self._step = 0
        # When the steps under way will have ended, and how long one takes.
        self._busy_until, self._step_began, self._step_seconds = 0.0, 0.0, float("inf")

    def start(self, first_step: int, append: Callable[[str], None]) -> None:
        """Is called once there is a state; from here on the attempt is on record.

        Args:
            first_step: the first that is to be made.
            append: writes a line to the file.
        """
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
        """Those before, and this one as far as it has come."""
        number = self._earlier[-1].number + 1 if self._earlier else 1
        work = dict(self._seconds), self._first_step, self._step, self._kind
        return [*self._earlier, Attempt(number, _process(), self._began, *work)]

    @contextlib.contextmanager
    def doing(self, kind: str) -> Iterator[None]:
        """Its block is work of a kind, before which the steps under way have ended."""
        before = self._kind
        self._turn_to(kind)
        self._note_if_due()
        yield
        # Where it fails, that was the last thing to be done.
        self._busy_until = self._turn_to(before)

    def begin_step(self, step: int) -> None:
        """Is told of a step that is about to be made."""
        self._step = step
        self._step_began = self._turn_to("compile" if self._is_first() else self._kind_of_steps())
        self._note_if_due()

    def is_timed(self) -> bool:
        """Whether the step under way has to be waited for: its time is to be known."""
        return self._step < self._first_step + _TIMED_STEPS

    def end_step(self) -> None:
        """Is told that the step is under way, or has ended where it is timed."""
        now = self._turn_to(self._kind_of_steps())
        if not self.is_timed():
            self._busy_until = max(self._busy_until, self._step_began) + self._step_seconds
            return
        self._busy_until = now
        if not self._is_first():
            self._step_seconds = min(self._step_seconds, now - self._step_began)

    def waited(self, seconds: float) -> None:
        """Is told for how long a batch was waited for; while steps are under way, it costs nothing.

        Args:
            seconds: until now.
        """
        now, kind = self._turn_to(self._kind), self._kind
        if self._step >= self._first_step:
            idle = min(seconds, max(0.0, now - self._busy_until))
            self._seconds[kind] -= idle
            self._seconds["data"] += idle

    def note(self) -> None:
        """Writes down where the attempt is."""
        self._turn_to(self._kind)
        self._write(self.attempts[-1])

    def end(self, error: BaseException | None) -> None:
        """Writes down how the attempt ends; it is done where there is no error."""
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
        """Counts the time up to now, which is returned; from here on it is of another kind."""
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
    """Whether this process was started as `python -m`: a notebook's age is nobody's start-up."""
    return getattr(sys.modules["__main__"], "__spec__", None) is not None


@functools.cache
def _process() -> str:
    """A name of this process: numbers come again, in containers at once."""
    return f"{os.uname().nodename}:{os.getpid()}:{time.time() - process_age():.2f}"


def process_age() -> float:
    """For how many seconds this process has been there."""
    try:
        # proc(5); the name before it may hold any characters.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks
    except (AttributeError, IndexError, OSError, ValueError):
        return _age_by_ps()


def _age_by_ps() -> float:
    """As `process_age`, where there is no /proc: whole seconds, 0 where nothing tells."""
    command = ["ps", "-o", "etime=", "-p", str(os.getpid())]
    try:
        text = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0.0
    parts = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)", text.strip())
    days, hours, minutes, seconds = map(int, parts.groups("0")) if parts else (0, 0, 0, 0)
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
