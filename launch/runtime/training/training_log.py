"""What a training loop tells: metrics one step late, and whether they are finite."""

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
# Where one of these is not finite, the state is not, either.
CHECKED = ("loss", "gradient_norm", "update_norm")
LEVELS = "loss_by_level"
# So many steps are under way at most: the next batch is on the device in time, but not dozens.
_UNDER_WAY = 2
# So many steps can be looked back on for the first that was not finite.
_REMEMBERED = 1000


class TrainingLog:
    """The log of one run. Metrics are read one step late: the device never waits for the host.

    A logged step has, besides its metrics, `step_seconds`; `images_per_second`, of all devices
    together; `data_wait`, the share of the time that this process waited for batches;
    `share_of_peak`, of the chips' bfloat16 operations, where the chip is known; and the numbers of
    `memory`. The first step, which compiles, evaluations, pictures and saving do not count in
    these: they have `first_step_seconds`, `evaluation_seconds`, `pictures_seconds` and
    `checkpoint_seconds`.
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
        """Opens the files.

        Args:
            workdir: the run directory.
            start: the step that the run goes on from.
            total: its last step.
            label: its name on the terminal.
            newest_checkpoint: where that is, for the message when training diverges.
            ledger: of this attempt, which is on record from here on.
        """
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
        """Writes down how the attempt has ended, if that can be; ends the files."""
        with contextlib.closing(self):
            # What is at fault here is told already where the attempt has failed of it.
            with contextlib.suppress(OSError) if error else contextlib.nullcontext():
                self._ledger.end(error)
        if error is None and jax.process_index() == 0:
            say(f"{self._label}: {summary(self._ledger.attempts)}")
            say(ending(self._workdir, self._label))

    def wait_for(self, batches: Iterable[T]) -> Iterator[T]:
        """Hands the batches on, and takes the time that each is waited for."""
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
        """Is told of a step that is about to be made; of the first it learns images and FLOPs."""
        self._ledger.begin_step(step)
        if not self._timer.started:
            self._terminal.compiling()
            images = len(next(iter(batch.values())))
            self._timer.start(images, floor_seconds(train_step, state, batch))

    def after(self, step: int, metrics: Metrics, read: bool) -> None:
        """Is told of a step under way; reads the metrics of the one before, if they are to be.

        Raises:
            Diverged: they are not finite.
        """
        self.flush()
        kept = {name: metrics[name] for name in (*CHECKED, LEVELS) if name in metrics}
        self._unchecked.append((step, kept))
        if len(self._unchecked) > _UNDER_WAY:
            jax.block_until_ready(self._unchecked[-1 - _UNDER_WAY][1])
        if self._ledger.is_timed():
            jax.block_until_ready(metrics)
        self._ledger.end_step()
        if not self._timer.running:
            self._timer.run(step)
            self._terminal.compiled(self._timer.first_step_seconds)
        if read:
            self._pending = (step, metrics)
        self._terminal.update()

    def flush(self) -> None:
        """Waits for the metrics that are to be read, and writes them.

        Raises:
            Diverged: they are not finite.
        """
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        self.check()
        scalars = to_scalars(metrics)
        speed = self._timer.lap(step)
        self._terminal.show(step, scalars["loss"], speed.get("images_per_second"))
        self._writer.write(step, {**scalars, **speed, **memory()})

    def check(self) -> None:
        """Waits for the newest step: what it has left is finite, or the first that was not is told.

        Raises:
            Diverged: with the step, its batch, and where the newest checkpoint is.
        """
        if self._unchecked and any(_not_finite(self._unchecked[-1][1])):
            step, metrics = next(entry for entry in self._unchecked if any(_not_finite(entry[1])))
            name = next(_not_finite(metrics))
            levels = np.flatnonzero(~np.isfinite(metrics[LEVELS])) if LEVELS in metrics else ()
            where = ", ".join(f"{LEVELS}/{i}" for i in levels)
            more = f"; not finite, or without an image: {where}" if where else ""
            self._diverged(step, name.replace("_", " "), float(metrics[name]), more)
        self._unchecked.clear()

    def evaluate(self, step: int, evaluate: Callable[[Any], Mapping], state: Any) -> dict:
        """Evaluates a state and logs that.

        Raises:
            Diverged: 'validation_loss' is not finite.
        """
        metrics, seconds = self._pause("evaluation", evaluate, state)
        scalars = to_scalars(metrics)
        if not np.isfinite(scalars.get("validation_loss", 0.0)):
            self._diverged(step, "validation loss", scalars["validation_loss"])
        self._writer.write(step, {**scalars, "evaluation_seconds": seconds})
        return scalars

    def picture(self, step: int, pictures: Callable[[Any], Figure], state: Any) -> None:
        """Draws a picture of a state and files it."""
        figure, seconds = self._pause("pictures", pictures, state)
        self._writer.picture(step, figure)
        self._writer.write(step, {"pictures_seconds": seconds})

    def save(self, step: int, save: Callable[..., Any], *args: Any) -> None:
        """Saves, if the newest state is finite, and logs how long training stood still for it.

        Raises:
            Diverged: it is not.
        """
        _, seconds = self._pause("checkpoint", save, *args)
        self._writer.write(step, {"checkpoint_seconds": seconds})
        self._ledger.note()
        # Before the checkpoint is sealed: a run that goes on from it has the numbers up to there.
        self._pause("checkpoint", self._writer.copy)

    def close(self) -> None:
        """Ends the bar's line and the files; what is pending has been flushed, or is given up."""
        self._terminal.close()
        self._writer.close()

    def _pause(self, kind: str, work: Callable[..., T], *args: Any) -> tuple[T, float]:
        """Does what is not training; its seconds begin when the steps under way have ended."""
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
    """Where a run that has come to its end is, and what it has reached.

    Args:
        workdir: the run directory; its validation numbers are those of all attempts.
        label: its name on the terminal.
    """
    metrics = read_metrics(workdir)
    told = ("validation_", "sampled_")
    names = {name: None for line in metrics for name in line if name.startswith(told)}
    reached = []
    for name in names:
        steps, values = column(metrics, name)
        # Of distances and losses less is better; scores are the other way round.
        falls = "loss" in name or (name.startswith("sampled_") and name != "sampled_is")
        best = int(np.nanargmin(values) if falls else np.nanargmax(values))
        text = f"{name.replace('_', ' ')} {values[-1]:.4g}"
        reached.append(text + (f" (best {values[best]:.4g} at step {steps[best]})"))
    return f"{label}: done, in {workdir}{'; ' if reached else ''}{', '.join(reached)}"


def _rate(images_per_second: float) -> str:
    """Four digits; of thousands all are written out."""
    whole = images_per_second >= 1000
    return f"{images_per_second:,.0f}" if whole else f"{images_per_second:.4g}"


def _not_finite(metrics: Metrics) -> Iterator[str]:
    return (name for name in CHECKED if name in metrics and not np.isfinite(metrics[name]))


class _Terminal:
    """A bar on a terminal; in a file or a pipe a line each time that metrics are logged."""

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
        if step > since:
            left = (now - then) / (step - since) * (self._total - step)
            said.append(f"{tqdm.format_interval(left)} left")
        self._print(f"{step}/{self._total} steps, {', '.join(said)}")

    def close(self) -> None:
        self._bar.close()

    def _print(self, line: str) -> None:
        if self._lines:
            say(f"{self._label}: {line}")
