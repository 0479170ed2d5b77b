"""Runs command lines in the order of their dependencies, several at a time; remembers the done."""

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

    A finished step leaves a mark, `steps/NAME.json`: what it ran with, its seconds, its peak
    memory.
    """

    # In doubt a step simply runs again: tasks resume, notice what is complete, and refuse work
    # begun with other settings.

    def __init__(
        self,
        workdir: Path,
        steps: Sequence[Job],
        lanes: int,
        env: Mapping[str, str],
        launcher: Sequence[str] = PYTHON,
        options: Sequence[str] = (),
    ):
        """Prepares to run steps, `lanes` at a time; `workdir` gets marks and logs.

        `env` is added to our environment variables. `launcher` comes before every command, with
        `{lane}` replaced by the number of the lane, from 0, and `{step}` by the step's name; it
        must end when the command ends, with the same exit code. `options` come after every command
        and must not change what it makes: marks ignore them.
        """
        self._workdir, self._steps, self._env = workdir, {s.name: s for s in steps}, dict(env)
        self._lanes, self._launcher, self._options = lanes, tuple(launcher), tuple(options)
        self._running: dict[int, Child] = {}
        # Seconds of earlier runs of this study are kept beside the marks.
        self._clock = workdir / "clock.json"
        self._seconds_before = 0.0
        if self._clock.exists():
            self._seconds_before = read_fields(self._clock, seconds=float | int)["seconds"]
        self._start = time.perf_counter()
        self._ticked = 0.0

    def wall_seconds(self) -> float:
        """Seconds spent on these steps so far, over all runs in which one of them ran."""
        return self._seconds_before + self._ticked

    def tick(self, every: float = 0.0) -> None:
        """Saves the time, unless that was done less than `every` seconds ago."""
        now = time.perf_counter() - self._start
        if now - self._ticked >= every:
            self._ticked = now
            write_json(self._clock, {"seconds": self.wall_seconds()})

    def run(self) -> None:
        """Runs what is not done.

        Raises:
            JobFailed: a step failed; the others were sent SIGTERM, so that they saved.
            Preempted: SIGTERM came, and was passed on to all steps.
        """
        # 1. What is complete from an earlier run.
        done = {name for name in self._steps if self._is_done(name)}
        bars = _Bars(self._lanes, [s for s in self._steps.values() if s.name not in done])
        for name in self._steps:
            if name in done:
                bars.say(f"{name}: already complete")
        # 2. Start what can start and collect what has ended, until all is done.
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
                # 3. On an error, Ctrl-C or SIGTERM: tell all before waiting for any, as saving
                # takes time.
                for child in self._running.values():
                    child.terminate()
                for child in self._running.values():
                    child.wait()
                bars.close()

    def marks(self) -> dict[str, dict[str, Any]]:
        """The marks of the steps by name; all must have finished."""
        return {name: _read_mark(self._mark_path(name)) for name in self._steps}

    def _is_done(self, name: str) -> bool:
        """Whether its mark and output exist, and no step that it needs has run since."""
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
            # Bad input may be at fault, so the next run checks again the steps that made it.
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
    """The command, and the checksums of everything that decides its output."""
    recipe = {"command": list(step.command), "inputs": {str(f): sha256(f) for f in step.inputs}}
    return recipe | ({"digest": step.digest} if step.digest else {})


def _replaced(word: str, words: Mapping[str, str]) -> str:
    for old, new in words.items():
        word = word.replace(old, new)
    return word


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Lets SIGTERM unwind the stack as Ctrl-C does; only the main thread can set handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: object) -> None:
        raise Preempted("SIGTERM: every step was asked to save; run the same command again")

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        # None means a handler that was not set from Python.
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


class _Bars:
    """One bar per lane with the last line of its step, and one for all steps.

    A notebook cell shows one bar at a time, so there only the last; a log file gets a line per
    step.
    """

    def __init__(self, lanes: int, steps: Sequence[Job]):
        total_seconds = sum(step.seconds for step in steps)
        terminal = sys.stderr.isatty()
        self._quiet = not terminal and not type(sys.stderr).__module__.startswith("ipykernel")
        form = "{desc} {percentage:3.0f}%|{bar}| {elapsed} so far, about {remaining} left"
        # A notebook stores everything ever printed in a cell, so update there once a second.
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
        self._total.update(0)  # lets tqdm redraw the elapsed time

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
