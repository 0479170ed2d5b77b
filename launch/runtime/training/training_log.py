"""The log of a training loop: metrics read one step late, and checked to be finite."""

import collections
import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from etils import epath
from matplotlib.figure import Figure
from tqdm import tqdm

from launch.cli import say
from launch.errors import Diverged
from launch.goodput import summary
from launch.runtime.training.goodput import Ledger
from launch.runtime.training.metrics import MetricWriter, column, read_metrics, to_scalars
from launch.runtime.training.performance import StepTimer, floor_seconds, memory
from launch.runtime.types import Batch, Metrics

T = TypeVar("T")
# If one of these is not finite, neither is the state.
CHECKED = ("loss", "gradient_norm", "update_norm")
# Mean loss by noise level, a vector: NaN where a batch had no example at a level.
LEVELS = "loss_by_level"
# At most this many steps are in flight. The next batch is on the device in time, and the host does
# not run dozens of steps (and their memory) ahead.
_UNDER_WAY = 2
# How many steps back the first non-finite one can be found.
_REMEMBERED = 1000


class TrainingLog:
    """The log of one run. Metrics are read one step late, so the device never waits for the host.

    A logged step has, besides its metrics: `step_seconds`; `images_per_second` of all devices;
    `data_wait`, the share of the time that this process waited for batches; `share_of_peak` of the
    chips' bfloat16 FLOPs, if the chip is known; and the numbers of `memory`. The first step (which
    compiles), evaluations, pictures and saves do not count in these. They have their own
    `first_step_seconds`, `evaluation_seconds`, `pictures_seconds` and `checkpoint_seconds`.
    """

    def __init__(
        self,
        workdir: epath.Path,
        start: int,
        total: int,
        label: str,
        newest_checkpoint: Callable[[], str],
        ledger: Ledger,
    ):
        """Opens the files and starts the ledger; the run resumes after step `start`."""
        self._workdir, self._newest_checkpoint = workdir, newest_checkpoint
        self._writer = MetricWriter(workdir, start)
        self._terminal = _Terminal(start, total, label)
        self._timer, self._ledger, self._label = StepTimer(), ledger, label
        self._pending: tuple[int, Metrics] | None = None
        self._unchecked = collections.deque[tuple[int, Metrics]](maxlen=_REMEMBERED)
        ledger.start(start + 1, self._writer.attempt)

    def __enter__(self) -> "TrainingLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: Any) -> None:
        """Records how the attempt ended, if possible, and closes the files."""
        with contextlib.closing(self):
            # If the disk is what failed, recording fails too: the first error is the one to raise.
            with contextlib.suppress(OSError) if error else contextlib.nullcontext():
                self._ledger.end(error)
        if error is None and jax.process_index() == 0:
            say(f"{self._label}: {summary(self._ledger.attempts)}")
            say(ending(self._workdir, self._label))

    def wait_for(self, batches: Iterable[T]) -> Iterator[T]:
        """Yields the batches, timing how long each is waited for."""
        rest = iter(batches)
        while True:
            began = time.perf_counter()
            try:
                batch = next(rest)
            except StopIteration:
                return
            seconds = time.perf_counter() - began
            self._timer.waited += seconds
            self._ledger.waited(seconds)
            yield batch

    def before(self, step: int, train_step: Callable[..., Any], state: Any, batch: Batch) -> None:
        """Call before a step is made; the first call counts the images and FLOPs of a step."""
        self._ledger.begin_step(step)
        if not self._timer.started:
            self._terminal.compiling()
            images = len(next(iter(batch.values())))
            self._timer.start(images, floor_seconds(train_step, state, batch))

    def after(self, step: int, metrics: Metrics, read: bool) -> None:
        """Call when a step is dispatched. If `read`, its metrics are logged at the next call.

        Raises `Diverged` if those of an earlier step are not finite.
        """
        # 1. Log the step before: its metrics are ready, or nearly.
        self.flush()
        # 2. Keep what tells whether this one is finite, and bound the number of steps in flight.
        kept = {name: metrics[name] for name in (*CHECKED, LEVELS) if name in metrics}
        self._unchecked.append((step, kept))
        if len(self._unchecked) > _UNDER_WAY:
            jax.block_until_ready(self._unchecked[-1 - _UNDER_WAY][1])
        # 3. Time the step.
        if self._ledger.is_timed():
            jax.block_until_ready(metrics)
        self._ledger.end_step()
        if not self._timer.running:
            self._timer.run(step)
            self._terminal.compiled(self._timer.first_step_seconds)
        # 4. Leave the metrics for the next call.
        if read:
            self._pending = (step, metrics)
        self._terminal.update()

    def flush(self) -> None:
        """Waits for pending metrics and writes them; raises `Diverged` if not finite."""
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        self.check()
        scalars = to_scalars(metrics)
        speed = self._timer.lap(step)
        self._terminal.show(step, scalars["loss"], speed.get("images_per_second"))
        self._writer.write(step, {**scalars, **speed, **memory()})

    def check(self) -> None:
        """Waits for the newest step; raises `Diverged` with the first step that was not finite."""
        # Looking at the newest is enough: NaN in a state stays there.
        if self._unchecked and any(_not_finite(self._unchecked[-1][1])):
            step, metrics = next(entry for entry in self._unchecked if any(_not_finite(entry[1])))
            name = next(_not_finite(metrics))
            levels = np.flatnonzero(~np.isfinite(metrics[LEVELS])) if LEVELS in metrics else ()
            where = ", ".join(f"{LEVELS}/{i}" for i in levels)
            more = f"; not finite, or without an image: {where}" if where else ""
            self._diverged(step, name.replace("_", " "), float(metrics[name]), more)
        self._unchecked.clear()

    def evaluate(self, step: int, evaluate: Callable[[Any], Mapping], state: Any) -> dict:
        """Evaluates a state and logs the result; `Diverged` if `validation_loss` is not finite."""
        metrics, seconds = self._pause("evaluation", evaluate, state)
        scalars = to_scalars(metrics)
        if not np.isfinite(scalars.get("validation_loss", 0.0)):
            self._diverged(step, "validation loss", scalars["validation_loss"])
        self._writer.write(step, {**scalars, "evaluation_seconds": seconds})
        return scalars

    def picture(self, step: int, pictures: Callable[[Any], Figure], state: Any) -> None:
        """Draws a state and writes the picture."""
        figure, seconds = self._pause("pictures", pictures, state)
        self._writer.picture(step, figure)
        self._writer.write(step, {"pictures_seconds": seconds})

    def save(self, step: int, save: Callable[..., Any], *args: Any) -> None:
        """Saves if the newest state is finite, else raises `Diverged`; logs how long it took."""
        _, seconds = self._pause("checkpoint", save, *args)
        self._writer.write(step, {"checkpoint_seconds": seconds})
        self._ledger.note()
        # Upload before the checkpoint is sealed: a run that resumes from it has all its numbers.
        self._pause("checkpoint", self._writer.copy)

    def close(self) -> None:
        """Closes the files; pending metrics have been flushed, or are dropped after an error."""
        self._terminal.close()
        self._writer.close()

    def _pause(self, kind: str, work: Callable[..., T], *args: Any) -> tuple[T, float]:
        # The time of the work starts when the steps in flight have ended.
        self.flush()
        self.check()
        began = time.perf_counter()
        with self._ledger.doing(kind):
            result = work(*args)
        seconds = time.perf_counter() - began
        self._timer.paused += seconds
        return result, seconds

    def _diverged(self, step: int, name: str, value: float, more: str = "") -> None:
        raise Diverged(
            f"{self._workdir}: the {name} of step {step} is {value}{more} (batch "
            f"{step - 1}; newest good checkpoint: {self._newest_checkpoint()}); lower the "
            "learning rate or clip the gradient"
        )


def ending(workdir: epath.Path, label: str) -> str:
    """One line: where a finished run is, and its validation numbers over all attempts."""
    metrics = read_metrics(workdir)
    told = ("validation_", "sampled_")
    names = {name: None for line in metrics for name in line if name.startswith(told)}
    reached = []
    for name in names:
        steps, values = column(metrics, name)
        # Lower is better for losses and distances (FID), higher for scores (Inception Score).
        falls = "loss" in name or (name.startswith("sampled_") and name != "sampled_is")
        best = int(np.nanargmin(values) if falls else np.nanargmax(values))
        text = f"{name.replace('_', ' ')} {values[-1]:.4g}"
        reached.append(text + (f" (best {values[best]:.4g} at step {steps[best]})"))
    return f"{label}: done, in {workdir}{'; ' if reached else ''}{', '.join(reached)}"


def _rate(images_per_second: float) -> str:
    # Four significant digits, or all digits of the integer part.
    whole = images_per_second >= 1000
    return f"{images_per_second:,.0f}" if whole else f"{images_per_second:.4g}"


def _not_finite(metrics: Metrics) -> Iterator[str]:
    return (name for name in CHECKED if name in metrics and not np.isfinite(metrics[name]))


class _Terminal:
    """A bar on a terminal; in a file or a pipe, a line each time that metrics are logged."""

    def __init__(self, start: int, total: int, label: str):
        first, terminal = jax.process_index() == 0, sys.stderr.isatty()
        self._lines, self._label, self._total = first and not terminal, label, total
        self._began: tuple[int, float] | None = None
        self._bar = tqdm(
            total=total,
            initial=start,
            desc=label,
            unit="step",
            mininterval=1.0,
            disable=not (first and terminal),
        )
        self._print(f"{start}/{total} steps")

    def compiling(self) -> None:
        self._bar.set_postfix_str("compiling")
        self._print("compiling the first step")

    def compiled(self, seconds: float) -> None:
        self._bar.set_postfix_str("")
        self._print(f"compiled in {seconds:.0f} s")

    def update(self) -> None:
        self._bar.update()

    def show(self, step: int, loss: float, images_per_second: float | None) -> None:
        said = [f"loss={loss:.4f}"]
        if images_per_second is not None:
            said.append(f"{_rate(images_per_second)} images/s")
        self._bar.set_postfix_str(", ".join(said))
        now = time.perf_counter()
        if self._began is None:
            self._began = step, now
        since, then = self._began
        # The rate since the first log of this process, which excludes compilation.
        if step > since:
            left = (now - then) / (step - since) * (self._total - step)
            said.append(f"{tqdm.format_interval(left)} left")
        self._print(f"{step}/{self._total} steps, {', '.join(said)}")

    def close(self) -> None:
        self._bar.close()

    def _print(self, line: str) -> None:
        if self._lines:
            say(f"{self._label}: {line}")
