"""Runs command lines that wait for each other, some at a time, and remembers what is done."""

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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from input_pipeline.files import read_json, sha256, write_json
from launch.commands import PREEMPTED, Failed


@dataclasses.dataclass(frozen=True)
class Step:
    """One command line.

    Attributes:
        name: unique; names its log and its mark too.
        command: arguments behind `python -m`.
        inputs: files that the command reads; a step is run again where one has changed.
        output: what it makes; a step whose output is gone is run again.
        after: names of the steps that have to be done before.
        seconds: what it takes, roughly, for the overall bar.
    """

    name: str
    command: tuple[str, ...]
    inputs: tuple[Path, ...]
    output: Path
    after: tuple[str, ...] = ()
    seconds: float = 10.0


class StepFailed(Failed):
    """A command line has ended with an error.

    Attributes:
        code: its exit code.
    """

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


class Road:
    """The steps of one work directory.

    A finished step leaves a mark, `steps/NAME.json`: what it was run with, seconds, peak memory.
    Tasks go on where they were interrupted, find out what is complete, and refuse what does not fit
    what they have begun; so in doubt a step is simply run again.
    """

    def __init__(self, workdir: Path, steps: Sequence[Step], lanes: int, env: Mapping[str, str]):
        """Prepares to run `steps` of `workdir`, `lanes` at a time, with `env` on top of ours."""
        self._workdir, self._steps, self._env = workdir, {s.name: s for s in steps}, dict(env)
        self._lanes = lanes
        self._running: dict[int, _Child] = {}
        self._clock = workdir / "clock.json"
        self._seconds_before = read_json(self._clock)["seconds"] if self._clock.exists() else 0.0
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
            StepFailed: a step has failed; the others are ended.
        """
        done = {name for name in self._steps if self._is_done(name)}
        bars = _Bars(self._lanes, [s for s in self._steps.values() if s.name not in done])
        for name in self._steps:
            if name in done:
                bars.say(f"{name}: was complete")
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
            for child in self._running.values():
                child.end()
            bars.close()

    def marks(self) -> dict[str, dict[str, Any]]:
        """What the finished steps have left, by name."""
        return {name: read_json(self._mark_path(name)) for name in self._steps}

    def _is_done(self, name: str) -> bool:
        """Whether its mark is there, its output too, and no step it needs was done after it."""
        step, path = self._steps[name], self._mark_path(name)
        if not path.exists() or not step.output.exists():
            return False
        mark = read_json(path)
        return mark["run_with"] == _run_with(step) and all(
            self._is_done(other) and read_json(self._mark_path(other))["ended"] <= mark["ended"]
            for other in step.after
        )

    def _ended(self, child: "_Child") -> bool:
        try:
            return child.ended()
        except StepFailed:
            # What it was made of may be at fault: the next run looks at that again.
            for name in child.step.after:
                self._mark_path(name).unlink(missing_ok=True)
            raise

    def _start_ready(self, done: set[str]) -> None:
        busy = {child.step.name for child in self._running.values()}
        free = [lane for lane in range(self._lanes) if lane not in self._running]
        for step in self._steps.values():
            if free and step.name not in done | busy and set(step.after) <= done:
                self._running[free.pop(0)] = _Child(step, self._workdir, self._env)

    def _mark_path(self, name: str) -> Path:
        return self._workdir / "steps" / f"{name}.json"

    def _mark(self, child: "_Child") -> None:
        path = self._mark_path(child.step.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        mark = {
            "run_with": _run_with(child.step),
            "ended": time.time(),
            "seconds": child.seconds,
            "peak_memory_bytes": child.peak_memory_bytes,
        }
        write_json(path, mark)


def _run_with(step: Step) -> dict[str, Any]:
    """The command, and a digest of each file that it reads."""
    return {"command": list(step.command), "inputs": {str(f): sha256(f) for f in step.inputs}}


class _Child:
    """A running step; its last line of output is its progress."""

    def __init__(self, step: Step, workdir: Path, env: Mapping[str, str]):
        self.step, self.progress, self.error = step, "starting", ""
        # The last line of a traceback is often not the one that says what happened.
        self._last: collections.deque[str] = collections.deque(maxlen=12)
        self.seconds, self.peak_memory_bytes = 0.0, 0
        self._log = workdir / "logs" / f"{step.name}.log"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._start = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", *step.command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **env},
            preexec_fn=_die_with_parent,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        rest = b""
        with self._process.stdout as pipe:
            while chunk := os.read(pipe.fileno(), 65536):
                # A step must not wait for its log, not even on a full disk.
                with contextlib.suppress(OSError), self._log.open("ab") as log:
                    log.write(chunk)
                *lines, rest = re.split(rb"[\r\n]", rest + chunk)
                for line in filter(bytes.strip, lines):
                    self.progress = line.decode(errors="replace").strip()
                    self._last.append(self.progress)
                    if self.progress.startswith("error: "):
                        self.error = self.progress.removeprefix("error: ")

    def ended(self) -> bool:
        """Whether it has ended well."""
        pid, status, usage = os.wait4(self._process.pid, os.WNOHANG)
        if not pid:
            return False
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self._reader.join()
        self.seconds = time.perf_counter() - self._start
        self.peak_memory_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        code = self._process.returncode
        if code:
            how = f"exit code {code}" if code > 0 else f"killed by signal {-code}"
            said = self.error or " | ".join(self._last)
            reason = f"{self.step.name}: {said} ({how}, log: {self._log})"
            raise StepFailed(reason, code if code in (2, PREEMPTED) else 1)
        return True

    def end(self) -> None:
        """Stops it; what it has completed stays."""
        if self._process.returncode is None:
            self._process.terminate()
            self._process.wait()
            self._reader.join(timeout=1.0)


class _Bars:
    """One bar a lane that shows what its step prints, and one for the whole road.

    Where nobody looks (a log file), a line a step instead.
    """

    def __init__(self, lanes: int, steps: Sequence[Step]):
        total_seconds = sum(step.seconds for step in steps)
        self._quiet = not sys.stderr.isatty()
        form = "{desc} {percentage:3.0f}%|{bar}| {elapsed} so far, about {remaining} left"
        self._total = tqdm(
            total=total_seconds, desc="all", bar_format=form, position=0, disable=self._quiet
        )
        self._lanes = [
            tqdm(bar_format="  {desc}", position=1 + lane, disable=self._quiet, leave=False)
            for lane in range(lanes)
        ]

    def show(self, progress: Mapping[int, str]) -> None:
        for lane, bar in enumerate(self._lanes):
            bar.set_description_str(progress.get(lane, "")[:100])
        self._total.refresh()

    def finished(self, child: _Child) -> None:
        self.say(f"{child.step.name}: done in {child.seconds:.0f} s")
        self._total.update(child.step.seconds)

    def say(self, line: str) -> None:
        if self._quiet:
            print(line, file=sys.stderr, flush=True)
        else:
            self._total.write(line, file=sys.stderr)

    def close(self) -> None:
        for bar in (*self._lanes, self._total):
            bar.close()


# Loaded here: after a fork, beside other threads, it could wait for ever.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def _die_with_parent() -> None:
    """A killed road must not leave steps behind that write beside the next one's."""
    if _LIBC is not None:
        _LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
