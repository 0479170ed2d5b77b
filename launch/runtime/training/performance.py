"""What can be measured of training as it runs: speed, memory, a profile of some steps."""

import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
from etils import epath

from launch.runtime.devices.flops import count_flops
from launch.runtime.devices.hardware import chip_of
from launch.runtime.types import Batch


class StepTimer:
    """Times of the steps since the last lap.

    Attributes:
        waited: seconds since then that were spent waiting for batches.
        paused: seconds since then that were spent on other things than training.
    """

    def __init__(self) -> None:
        self.waited = self.paused = 0.0
        self._images, self._began = 0, time.perf_counter()
        self._floor: float | None = None
        self._since: tuple[int, float] | None = None
        self._first: dict[str, float] = {}

    @property
    def started(self) -> bool:
        """Whether the first step has begun."""
        return self._images > 0

    @property
    def running(self) -> bool:
        """Whether the first step has ended."""
        return self._since is not None

    def start(self, images: int, floor_seconds: float | None) -> None:
        """Is called as the first step begins.

        Args:
            images: of a step, on all devices together.
            floor_seconds: what a step would take at the peak of the devices.
        """
        self._images, self._floor, self._began = images, floor_seconds, time.perf_counter()

    def run(self, step: int) -> None:
        """Is called when the first step, which compiles, has ended: it is kept by itself."""
        now = time.perf_counter()
        self._first = {"first_step_seconds": now - self._began}
        self._since, self.waited, self.paused = (step, now), 0.0, 0.0

    @property
    def first_step_seconds(self) -> float:
        """Of the first step, which compiles, once it has ended."""
        return self._first["first_step_seconds"]

    def lap(self, step: int) -> dict[str, float]:
        """What is to be logged at a step that has just ended; the next lap begins here."""
        assert self._since is not None, "run() comes first"
        now, (since, then) = time.perf_counter(), self._since
        scalars, self._first = self._first, {}
        if step > since:
            seconds = now - then - self.paused
            step_seconds = seconds / (step - since)
            scalars |= {
                "step_seconds": step_seconds,
                "images_per_second": self._images / step_seconds,
                "data_wait": self.waited / seconds,
            }
            if self._floor:
                scalars["share_of_peak"] = self._floor / step_seconds
        self._since, self.waited, self.paused = (step, now), 0.0, 0.0
        return scalars


def floor_seconds(train_step: Callable[..., Any], state: Any, batch: Batch) -> float | None:
    """Time of a step if all devices worked at their peak in bfloat16.

    Args:
        train_step: the jitted step.
        state: its first argument.
        batch: its second.

    Returns:
        Seconds; None where the chip is unknown (a CPU) or the step is not a jitted function.
    """
    chip = chip_of(jax.local_devices()[0])
    if chip is None or not hasattr(train_step, "lower"):
        return None
    return count_flops(train_step, state, batch) / (jax.device_count() * chip.peak_flops)


def memory() -> dict[str, float]:
    """Peaks so far in bytes: of this process's fullest device where it tells, of the process."""
    # The unit is the system's (getrusage(2)).
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scalars = {"host_peak_bytes": float(host * (1 if sys.platform == "darwin" else 1024))}
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [stat["peak_bytes_in_use"] for stat in stats if "peak_bytes_in_use" in stat]
    return scalars | ({"device_peak_bytes": float(max(peaks))} if peaks else {})


class Profile:
    """A trace of some steps on the first process, for TensorBoard, XProf or Perfetto.

    Close it: a window that is open when training ends is written as far as it goes.
    """

    def __init__(self, folder: epath.Path, first: int, start: int = 0, steps: int = 0):
        """Sets the window.

        Args:
            folder: where the trace goes.
            first: the run's first step; of a window that began before it nothing is traced.
            start: the first step to trace.
            steps: how many; 0 is none.
        """
        is_traced = steps > 0 and start >= first and jax.process_index() == 0
        self._folder, self._start = folder, start if is_traced else None
        self._last, self._open = start + steps - 1, False

    def before(self, step: int, state: Any) -> None:
        """Is told of a step that is about to be made from `state`."""
        if step == self._start:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._folder))
            self._open = True

    def after(self, step: int, metrics: Any) -> None:
        """Is told of a step under way, and what it will return."""
        if self._open and step == self._last:
            jax.block_until_ready(metrics)
            self.close()

    def close(self) -> None:
        """Writes the trace if one is open."""
        if self._open:
            self._open = False
            jax.profiler.stop_trace()
