"""Runs command lines that wait for each other, some at a time, and remembers what is done."""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from launch.cli import say
from launch.errors import Preempted
from launch.files import read_fields, sha256, write_json
from launch.jobs.job import Child, Job, JobFailed

__all__ = ["PYTHON", "Job", "JobFailed", "JobRunner"]

PYTHON = (sys.executable, "-m")


class JobRunner:
    """The steps of one work directory.

    A finished step leaves a mark, `steps/NAME.json`: what it was run with, seconds, peak memory.
    Tasks go on where they were interrupted, find out what is complete, and refuse what does not fit
    what they have begun; so in doubt a step is simply run again.
    """

    def __init__(
        self,
        workdir: Path,
        steps: Sequence[Job],
        lanes: int,
        env: Mapping[str, str],
        launcher: Sequence[str] = PYTHON,
        options: Sequence[str] = (),
    ):
        """Prepares to run steps.

        Args:
            workdir: where marks and logs are.
            steps: the command lines.
            lanes: how many run at a time.
            env: environment variables on top of ours.
            launcher: stands before every command; `{lane}` in it is the number of the lane, from 0,
                and `{step}` the name of the step. It ends when the command has ended, with its
                exit code.
            options: stand behind every command; they change nothing in what it makes.
        """
        self._workdir, self._steps, self._env = workdir, {s.name: s for s in steps}, dict(env)
        self._lanes, self._launcher, self._options = lanes, tuple(launcher), tuple(options)
        self._running: dict[int, Child] = {}
        self._clock = workdir / "clock.json"
        self._seconds_before = 0.0
        if self._clock.exists():
            self._seconds_before = read_fields(self._clock, seconds=float | int)["seconds"]
        self._start = time.perf_counter()
        self._ticked = 0.0

    def wall_seconds(self) -> float:
        """Time spent on the road so far, over all runs of it that did something."""
        return self._seconds_before + self._ticked

    def tick(self, every: float = 0.0) -> None:
        """Notes the time, unless that was done less than `every` seconds ago."""
        now = time.perf_counter() - self._start
        if now - self._ticked >= every:
            self._ticked = now
            write_json(self._clock, {"seconds": self.wall_seconds()})

    def run(self) -> None:
        """Runs what is not done.

        Raises:
            JobFailed: a step has failed; the others are ended, as by SIGTERM: they save.
            Preempted: SIGTERM came; all steps are ended in the same way.
        """
        done = {name for name in self._steps if self._is_done(name)}
        bars = _Bars(self._lanes, [s for s in self._steps.values() if s.name not in done])
        for name in self._steps:
            if name in done:
                bars.say(f"{name}: was complete")
        with _sigterm_raises():
            try:
                while len(done) < len(self._steps):
                    self.tick(every=2.0)
                    self._start_ready(done)
                    bars.show({lane: child.progress for lane, child in self._running.items()})
                    for lane, child in list(self._running.items()):
                        if self._ended(child):
                            del self._running[lane]
                            self._mark(child)
                            done.add(child.step.name)
                            bars.finished(child)
                    time.sleep(0.1)
            finally:
                # All are told before any is waited for: saving takes them a while.
                for child in self._running.values():
                    child.terminate()
                for child in self._running.values():
                    child.wait()
                bars.close()

    def marks(self) -> dict[str, dict[str, Any]]:
        """What the finished steps have left, by name."""
        return {name: _read_mark(self._mark_path(name)) for name in self._steps}

    def _is_done(self, name: str) -> bool:
        """Whether its mark is there, its output too, and no step it needs was done after it."""
        step, path = self._steps[name], self._mark_path(name)
        if not path.exists() or not step.output.exists():
            return False
        mark = _read_mark(path)
        return mark["run_with"] == _run_with(step) and all(
            self._is_done(other) and _read_mark(self._mark_path(other))["ended"] <= mark["ended"]
            for other in step.after
        )

    def _ended(self, child: "Child") -> bool:
        try:
            return child.ended()
        except JobFailed:
            # What it was made of may be at fault: the next run looks at that again.
            for name in child.step.after:
                self._mark_path(name).unlink(missing_ok=True)
            raise

    def _start_ready(self, done: set[str]) -> None:
        busy = {child.step.name for child in self._running.values()}
        free = [lane for lane in range(self._lanes) if lane not in self._running]
        for step in self._steps.values():
            if free and step.name not in done | busy and set(step.after) <= done:
                lane = free.pop(0)
                words = {"{lane}": str(lane), "{step}": step.name}
                launcher = [_replaced(word, words) for word in self._launcher]
                command_line = [*launcher, *step.command, *self._options]
                self._running[lane] = Child(step, self._workdir, self._env, command_line)

    def _mark_path(self, name: str) -> Path:
        return self._workdir / "steps" / f"{name}.json"

    def _mark(self, child: "Child") -> None:
        path = self._mark_path(child.step.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        mark = {
            "run_with": _run_with(child.step),
            "ended": time.time(),
            "seconds": child.seconds,
            "peak_memory_bytes": child.peak_memory_bytes,
        }
        write_json(path, mark)


def _read_mark(path: Path) -> dict[str, Any]:
    number = float | int
    return read_fields(path, run_with=dict, ended=number, seconds=number, peak_memory_bytes=number)


def _run_with(step: Job) -> dict[str, Any]:
    """The command, and digests of what decides what it makes."""
    recipe = {"command": list(step.command), "inputs": {str(f): sha256(f) for f in step.inputs}}
    return recipe | ({"digest": step.digest} if step.digest else {})


def _replaced(word: str, words: Mapping[str, str]) -> str:
    for old, new in words.items():
        word = word.replace(old, new)
    return word


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Lets SIGTERM unwind the stack, as Ctrl-C does; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: object) -> None:
        raise Preempted("SIGTERM: every step was told to save; run the same command again")

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        # None is a handler that was not set from Python.
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


class _Bars:
    """One bar a lane that shows what its step prints, and one for the whole road.

    In a notebook, whose cells show one bar at a time, the last one only; where nobody looks (a log
    file), a line a step instead.
    """

    def __init__(self, lanes: int, steps: Sequence[Job]):
        total_seconds = sum(step.seconds for step in steps)
        terminal = sys.stderr.isatty()
        self._quiet = not terminal and not type(sys.stderr).__module__.startswith("ipykernel")
        form = "{desc} {percentage:3.0f}%|{bar}| {elapsed} so far, about {remaining} left"
        # A notebook keeps all that was ever printed in a cell.
        often = dict(mininterval=0.1 if terminal else 1.0, miniters=0)
        nothing = self._quiet or not steps
        self._total = tqdm(
            total=total_seconds, desc="all", bar_format=form, disable=nothing, **often
        )
        self._lanes = [
            tqdm(bar_format="  {desc}", position=1 + lane, disable=not terminal, leave=False)
            for lane in range(lanes)
        ]

    def show(self, progress: Mapping[int, str]) -> None:
        for lane, bar in enumerate(self._lanes):
            bar.set_description_str(progress.get(lane, "")[:100])
        self._total.update(0)

    def finished(self, child: Child) -> None:
        self.say(f"{child.step.name}: done in {child.seconds:.0f} s")
        self._total.update(child.step.seconds)

    def say(self, line: str) -> None:
        if self._quiet:
            say(line)
        else:
            self._total.write(line, file=sys.stderr)

    def close(self) -> None:
        for bar in (*self._lanes, self._total):
            bar.close()
