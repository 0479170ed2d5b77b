"""Where numbers go: metrics.jsonl and TensorBoard events."""

import json
from collections.abc import Mapping

import jax
import numpy as np
import tensorboardX
from etils import epath

from input_pipeline.files import write_atomic


class MetricWriter:
    """Writes scalars of one run, by step; only the first process writes."""

    def __init__(self, workdir: epath.Path, start_step: int):
        """Opens the files; lines that a killed run wrote after `start_step` are dropped."""
        self._active = jax.process_index() == 0
        if not self._active:
            return
        path = workdir / "metrics.jsonl"
        kept = [line for line in read_metrics(workdir) if line["step"] <= start_step]
        write_atomic(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = path.open("a")
        self._events = tensorboardX.SummaryWriter(str(workdir), purge_step=start_step + 1)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Appends one line: {"step": step, **scalars}."""
        if not self._active:
            return
        self._file.write(json.dumps({"step": step, **scalars}) + "\n")
        self._file.flush()
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes both files."""
        if self._active:
            self._file.close()
            self._events.close()


def read_metrics(workdir: epath.Path | str) -> list[dict[str, float]]:
    """Reads metrics.jsonl; a last line that a crash cut off is left out."""
    path = epath.Path(workdir) / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def column(metrics: list[dict[str, float]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one scalar."""
    rows = [(line["step"], line[name]) for line in metrics if name in line]
    steps, values = zip(*rows, strict=True) if rows else ((), ())
    return np.array(steps), np.array(values)
