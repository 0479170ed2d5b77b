"""What can be measured while training runs: speed, memory, a profile of some steps."""

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
    """Times the steps since the last lap."""

    def __init__(self) -> None:
        # Seconds of the lap spent waiting for batches, and on other things than training.
        self.waited = self.paused = 0.0
        self._images, self._began = 0, time.perf_counter()
        self._floor: float | None = None
        self._since: tuple[int, float] | None = None
        self._first: dict[str, float] = {}

    @property
    def started(self) -> bool:
        """Whether the first step has started."""
        return self._images > 0

    @property
    def running(self) -> bool:
        """Whether the first step has ended."""
        return self._since is not None

    def start(self, images: int, floor_seconds: float | None) -> None:
        """Call as the first step starts.

        `images` are of all devices; `floor_seconds` is a step's time at their peak, if known.
        """
        self._images, self._floor, self._began = images, floor_seconds, time.perf_counter()

    def run(self, step: int) -> None:
        """Call when the first step has ended; it compiles, so it does not count in the laps."""
        now = time.perf_counter()
        self._first = {"first_step_seconds": now - self._began}
        self._since, self.waited, self.paused = (step, now), 0.0, 0.0

    @property
    def first_step_seconds(self) -> float:
        """Duration of the first step, compilation included, once it has ended."""
        return self._first["first_step_seconds"]

    def lap(self, step: int) -> dict[str, float]:
        """What to log at a step that has just ended; starts the next lap."""
        assert self._since is not None, "run() comes first"
        now, (since, then) = time.perf_counter(), self._since
        scalars, self._first = self._first, {}
        # There is no step in the lap if the first one itself is logged.
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
    """Seconds of a step at the devices' bfloat16 peak; None on unknown chips, or if not jitted."""
    chip = chip_of(jax.local_devices()[0])
    if chip is None or not hasattr(train_step, "trace"):
        return None
    return count_flops(train_step, state, batch) / (jax.device_count() * chip.peak_flops)


def memory() -> dict[str, float]:
    """Peak bytes so far: of the process, and of its fullest device if the platform tells."""
    # getrusage(2): bytes on macOS, kilobytes on Linux.
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scalars = {"host_peak_bytes": float(host * (1 if sys.platform == "darwin" else 1024))}
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [stat["peak_bytes_in_use"] for stat in stats if "peak_bytes_in_use" in stat]
    return scalars | ({"device_peak_bytes": float(max(peaks))} if peaks else {})


class Profile:
    """A trace of some steps on the first process, for TensorBoard, XProf or Perfetto.

    Close it: if training ends inside the window, the trace so far is written.
    """

    def __init__(self, folder: epath.Path, first: int, start: int = 0, steps: int = 0):
        """Traces `steps` steps (0: none) from `start` on; nothing if that is before `first`."""
        is_traced = steps > 0 and start >= first and jax.process_index() == 0
        self._folder, self._start = folder, start if is_traced else None
        self._last, self._open = start + steps - 1, False

    def before(self, step: int, state: Any) -> None:
        """Call before a step is made from `state`."""
        if step == self._start:
            # Earlier steps still run on the device and would appear in the trace.
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._folder))
            self._open = True

    def after(self, step: int, metrics: Any) -> None:
        """Call when a step is dispatched, with what it will return."""
        if self._open and step == self._last:
            jax.block_until_ready(metrics)
            self.close()

    def close(self) -> None:
        """Writes the trace if one is open."""
        if self._open:
            self._open = False
            jax.profiler.stop_trace()
