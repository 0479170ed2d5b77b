"""Runs command lines that wait for each other, some at a time, and remembers what is done."""

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

from input_pipeline.files import InputError, read_json, write_json


@dataclasses.dataclass(frozen=True)
class Step:
    """One command line.

    Attributes:
        name: unique; names its log and its mark too.
        command: arguments behind `python -m`.
        output: what it makes; a step whose output is gone is done again.
        after: names of the steps that have to be done before.
        seconds: what it takes, roughly, for the overall bar.
    """

    name: str
    command: tuple[str, ...]
    output: Path
    after: tuple[str, ...] = ()
    seconds: float = 10.0


class StepFailed(Exception):
    """A command line has ended with an error.

    Attributes:
        code: its exit code.
    """

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


class Road:
    """The steps of one work directory.

    A finished step leaves a mark, `steps/NAME.json`: its command, seconds and peak memory. Tasks go
    on where they were interrupted by themselves, so a step without a mark is simply run again.
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
            InputError: a mark was made by another command.
        """
        done = {name for name in self._steps if self._is_done(name)}
        bars = _Bars(self._lanes, sum(step.seconds for step in self._steps.values()))
        for name in done:
            bars.finished(self._steps[name], "was complete")
        try:
            while len(done) < len(self._steps):
                self.tick(every=2.0)
                self._start_ready(done)
                bars.show({lane: child.progress for lane, child in self._running.items()})
                for lane, child in list(self._running.items()):
                    if child.ended():
                        del self._running[lane]
                        self._mark(child)
                        done.add(child.step.name)
                        bars.finished(child.step, f"done in {child.seconds:.0f} s")
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
        if mark["command"] != list(step.command):
            raise InputError(
                f"{self._workdir} was begun with another command for {name}: remove it, or name "
                "another --workdir"
            )
        return all(
            self._is_done(other) and read_json(self._mark_path(other))["ended"] <= mark["ended"]
            for other in step.after
        )

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
            "command": list(child.step.command),
            "ended": time.time(),
            "seconds": child.seconds,
            "peak_memory_bytes": child.peak_memory_bytes,
        }
        write_json(path, mark)


class _Child:
    """A running step; its last line of output is its progress."""

    def __init__(self, step: Step, workdir: Path, env: Mapping[str, str]):
        self.step, self.progress = step, "starting"
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
        with self._log.open("ab") as log:
            while chunk := os.read(self._process.stdout.fileno(), 65536):
                log.write(chunk)
                *lines, rest = re.split(rb"[\r\n]", rest + chunk)
                shown = [line for line in lines if line.strip()]
                if shown or rest.strip():
                    last = shown[-1] if shown else rest
                    self.progress = last.decode(errors="replace").strip()

    def ended(self) -> bool:
        """Whether it has ended well."""
        pid, status, usage = os.wait4(self._process.pid, os.WNOHANG)
        if not pid:
            return False
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self._reader.join()
        self.seconds = time.perf_counter() - self._start
        self.peak_memory_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        if self._process.returncode:
            code = self._process.returncode
            raise StepFailed(
                f"{self.step.name}: {self.progress.removeprefix('error: ')} (exit code {code}, "
                f"log: {self._log})",
                2 if code == 2 else 1,
            )
        return True

    def end(self) -> None:
        """Stops it; what it has completed stays."""
        if self._process.returncode is None:
            self._process.terminate()
            self._process.wait()


class _Bars:
    """One bar a lane that shows what its step prints, and one for the whole road.

    Where nobody looks (a log file), a line a step instead.
    """

    def __init__(self, lanes: int, total_seconds: float):
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

    def finished(self, step: Step, how: str) -> None:
        line = f"{step.name}: {how}"
        if self._quiet:
            print(line, file=sys.stderr, flush=True)
        else:
            self._total.write(line, file=sys.stderr)
        self._total.update(step.seconds)

    def close(self) -> None:
        for bar in (*self._lanes, self._total):
            bar.close()


def _die_with_parent() -> None:
    """A killed road must not leave steps behind that write beside the next one's."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
