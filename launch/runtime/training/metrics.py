"""Where numbers and pictures go: metrics.jsonl, goodput.jsonl, PNG files, TensorBoard events."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np
from etils import epath
from matplotlib.figure import Figure

from launch.cli import say
from launch.files import is_local, naming, temporary_folder, write_atomic
from launch.goodput import GOODPUT
from launch.runtime.reports.image_grid import to_png
from launch.runtime.training.event_file import EventFile
from launch.runtime.training.mirror import Mirror

METRICS = "metrics.jsonl"
# Damaged lines of metrics.jsonl that a resumed run found, unchanged.
DAMAGED = "metrics.damaged"


class MetricWriter:
    """Writes the numbers and pictures of one run, by step, in the first process only."""

    def __init__(self, workdir: epath.Path, start_step: int):
        """Opens the files; for a run in an object store, local ones that are copied there.

        Lines that a killed run wrote after `start_step` are dropped, as those steps come again.
        Damaged lines move to a file of their own. stderr reports that, and missing metrics.
        """
        self._active = jax.process_index() == 0
        if not self._active:
            return
        self._workdir, path = workdir, workdir / METRICS
        # 1. Set damaged lines aside.
        lines, damaged = _read(path)
        if damaged:
            aside = workdir / DAMAGED
            earlier = aside.read_bytes() if aside.exists() else b""
            write_atomic(aside, earlier + b"".join(line + b"\n" for line in damaged))
            say(f"{path}: {_count(damaged)} moved to {aside.name}")
        # 2. Keep the lines up to the checkpoint.
        kept = [line for line in lines if line["step"] <= start_step]
        if start_step and not kept:
            state = "has no numbers" if path.exists() else "is missing"
            say(f"{path} {state}: the metrics up to step {start_step} are lost, training continues")
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomic(path, text.encode())
        # 3. A store cannot append to a file: write locally, and upload.
        self._folder, self._mirror = workdir, None
        if not is_local(workdir):
            self._folder = epath.Path(tempfile.mkdtemp(prefix="metrics-", dir=temporary_folder()))
            write_atomic(self._folder / METRICS, text.encode())
            self._mirror = Mirror(Path(self._folder), workdir)
        # 4. Open the files for appending.
        self._file = (self._folder / METRICS).open("a")
        self._attempts = self._open_attempts()
        with naming(self._folder):
            self._events = EventFile(self._folder, first_step=start_step + 1)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Appends the line {"step": step, **scalars}, and the same events."""
        if not self._active:
            return
        with naming(self._folder / METRICS):
            self._file.write(json.dumps({"step": step, **scalars}) + "\n")
            self._file.flush()
        with naming(self._folder):
            self._events.scalars(step, scalars)

    def attempt(self, line: str) -> None:
        """Appends a line to goodput.jsonl, which keeps all attempts, see `launch.goodput`."""
        if self._active:
            with naming(self._folder / GOODPUT):
                self._attempts.write(line)
                self._attempts.flush()

    def _open_attempts(self) -> IO[str]:
        before = self._workdir / GOODPUT
        lines = before.read_bytes() if before.exists() else b""
        if self._mirror:
            write_atomic(self._folder / GOODPUT, lines)
        file = (self._folder / GOODPUT).open("a")
        # A killed process may have left half a line: end it, so that only that one is lost.
        if lines and not lines.endswith(b"\n"):
            file.write("\n")
        return file

    def picture(self, step: int, figure: Figure) -> None:
        """Writes `pictures/step_N.png`, and the same picture as a TensorBoard event."""
        if not self._active:
            return
        folder = self._folder / "pictures"
        folder.mkdir(parents=True, exist_ok=True)
        png = to_png(figure)
        write_atomic(folder / f"step_{step}.png", png)
        with naming(self._folder):
            self._events.image(step, "pictures", png)

    def copy(self) -> None:
        """Waits until a run in an object store has there what was written so far."""
        if self._active and self._mirror:
            with naming(self._folder):
                self._events.flush()
            self._mirror.copy()

    def close(self) -> None:
        """Flushes the files."""
        if not self._active:
            return
        # Every file is closed even if another fails; the stack runs from the bottom up.
        with contextlib.ExitStack() as closing:
            closing.callback(self._close_mirror)
            closing.enter_context(naming(self._folder))
            closing.callback(self._events.close)
            closing.callback(self._file.close)
            closing.callback(self._attempts.close)

    def _close_mirror(self) -> None:
        if self._mirror and self._mirror.close():
            shutil.rmtree(self._folder, ignore_errors=True)
        elif self._mirror:
            say(f"{self._folder} has the metrics that {self._workdir} lacks")


def to_scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Brings metrics to the host as {logged name: number}.

    Entry i of a vector becomes `name/i`, entry `key` of a dict `name/key`; a NaN among them had
    nothing to be measured on, and is left out.
    """
    scalars = {}
    for name, value in jax.device_get(dict(metrics)).items():
        if not isinstance(value, dict) and np.ndim(value) == 0:
            scalars[name] = float(value)
            continue
        entries = value.items() if isinstance(value, dict) else enumerate(np.ravel(value))
        numbers = {f"{name}/{key}": float(entry) for key, entry in entries}
        scalars |= {name: entry for name, entry in numbers.items() if not np.isnan(entry)}
    return scalars


def read_metrics(workdir: epath.PathLike) -> list[dict[str, float]]:
    """The lines of metrics.jsonl: `step`, an integer from 0, and other numbers.

    A last line that a crash cut off is left out, and so are damaged ones, which stderr reports.
    """
    path = epath.Path(workdir) / METRICS
    lines, damaged = _read(path)
    if damaged:
        say(f"{path}: {_count(damaged)} skipped")
    return lines


def _read(path: epath.Path) -> tuple[list[dict[str, float]], list[bytes]]:
    # What follows the last newline is empty, or half a line.
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    parsed = [_parse(line) for line in lines]
    damaged = [line for line, numbers in zip(lines, parsed, strict=True) if numbers is None]
    return [numbers for numbers in parsed if numbers is not None], damaged


def _parse(line: bytes) -> dict[str, float] | None:
    try:
        numbers = json.loads(line)
        step, values = numbers["step"], numbers.values()
        is_sound = type(step) is int and 0 <= step < 2**63
        is_sound = is_sound and all(type(value) in (int, float) for value in values)
        np.array([*values], float)  # raises OverflowError for huge integers
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError):
        return None
    return numbers if is_sound else None


def _count(damaged: Sequence[bytes]) -> str:
    return "1 damaged line is" if len(damaged) == 1 else f"{len(damaged)} damaged lines are"


def column(metrics: Sequence[Mapping[str, float]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one scalar."""
    rows = [(line["step"], line[name]) for line in metrics if name in line]
    steps, values = zip(*rows, strict=True) if rows else ((), ())
    return np.array(steps), np.array(values)
