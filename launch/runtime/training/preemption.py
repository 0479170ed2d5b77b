"""Leaving in time when the machine is taken away: SIGTERM, or the platform's own notice."""

import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils

from launch.errors import Preempted

# The last step that JAX was asked about; global, as JAX's own count is.
_asked = 0


class Preemption:
    """Watches for the notice inside its block.

    With one process the first SIGTERM is noted and a second one kills. With several, JAX handles
    SIGTERM: it checks once a second and agrees with all processes on the step to stop after. A
    second SIGTERM does nothing there, as hosts may get theirs while others already save.
    """

    def __init__(self) -> None:
        self._noted = False

    def __enter__(self) -> "Preemption":
        if jax.process_count() == 1:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Restores the old handler; raises `Preempted` if a notice came that nobody asked about."""
        if jax.process_count() == 1:
            # None stands for a handler that was not installed from Python.
            signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)
        if self._noted and kind is None:
            raise Preempted("SIGTERM came as this run finished; run the same command again")

    def reached(self, step: int) -> bool:
        """Whether to save after `step` and leave, same on all processes; ask after every step."""
        if jax.process_count() == 1:
            return self._noted
        global _asked
        # JAX means the step after the last one that any process asked about. Step numbers can jump
        # past it, as from the start of a command into a resumed run: ask about both.
        steps, _asked = dict.fromkeys((_asked + 1, step)), step
        return any([multihost_utils.reached_preemption_sync_point(n) for n in steps])

    def _note(self, number: int, frame: FrameType | None) -> None:
        # Back to the default, so that a second signal kills a process that hangs.
        self._noted = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
