"""Where numbers and pictures go: metrics.jsonl, PNG files and TensorBoard events."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tensorboardX
from etils import epath
from matplotlib.figure import Figure

from launch.files import is_local, write_atomic
from launch.runtime.reports.image_grid import save_png


class MetricWriter:
    """Writes numbers and pictures of one run, by step; only the first process writes."""

    def __init__(self, workdir: epath.Path, start_step: int):
        """Opens the files; lines that a killed run wrote after `start_step` are dropped."""
        self._active = jax.process_index() == 0
        if not self._active:
            return
        self._workdir, path = workdir, workdir / "metrics.jsonl"
        kept = [line for line in read_metrics(workdir) if line["step"] <= start_step]
        self._text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomic(path, self._text.encode())
        # What is appended to an object of a bucket is not there before the file is closed.
        self._file = path.open("a") if is_local(workdir) else None
        self._events = tensorboardX.SummaryWriter(str(workdir), purge_step=start_step + 1)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Appends one line: {"step": step, **scalars}."""
        if not self._active:
            return
        line = json.dumps({"step": step, **scalars}) + "\n"
        if self._file is None:
            self._text += line
            write_atomic(self._workdir / "metrics.jsonl", self._text.encode())
        else:
            self._file.write(line)
            self._file.flush()
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)

    def picture(self, step: int, figure: Figure) -> None:
        """Writes `pictures/step_N.png`, and the same among TensorBoard's images."""
        if not self._active:
            return
        folder = self._workdir / "pictures"
        folder.mkdir(parents=True, exist_ok=True)
        save_png(figure, folder / f"step_{step}.png")
        self._events.add_figure("pictures", figure, step)

    def close(self) -> None:
        """Flushes both files."""
        if self._active:
            if self._file is not None:
                self._file.close()
            self._events.close()


def to_scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Brings metrics to the host, under the names that they are logged by.

    Args:
        metrics: scalars; short vectors, whose entry i becomes `name/i`; dicts, whose entry `key`
            becomes `name/key`. An entry that is NaN had nothing to be measured on and is left out.
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
    """Reads metrics.jsonl; a last line that a crash cut off is left out."""
    path = epath.Path(workdir) / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def column(metrics: Sequence[Mapping[str, float]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one scalar."""
    rows = [(line["step"], line[name]) for line in metrics if name in line]
    steps, values = zip(*rows, strict=True) if rows else ((), ())
    return np.array(steps), np.array(values)
