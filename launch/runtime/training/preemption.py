"""Leaving in time when the machine is taken away: SIGTERM, and what platforms send instead."""

import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils

from launch.errors import Preempted

# The last step that JAX was asked about; it lives as long as JAX's own count.
_asked = 0


class Preemption:
    """Watches for the notice while it is entered.

    One process: the first SIGTERM is noted, a second one ends the process at once. Several
    processes: JAX has taken over SIGTERM, looks for it once a second, and agrees with all processes
    on the step to stop after; a second one does nothing there, as every host may get one of its
    own while the others save already.
    """

    def __init__(self) -> None:
        self._noted = False

    def __enter__(self) -> "Preemption":
        if jax.process_count() == 1:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Puts the old handler back.

        Raises:
            Preempted: the notice has come and nobody has asked for it.
        """
        if jax.process_count() == 1:
            # None is a handler that was not set from Python.
            signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)
        if self._noted and kind is None:
            raise Preempted("SIGTERM came as this run finished; run the same command again")

    def reached(self, step: int) -> bool:
        """Whether to save after this step and leave; all processes get the same answer.

        Args:
            step: the step that was made. With several processes, each asks after every step.
        """
        if jax.process_count() == 1:
            return self._noted
        global _asked
        # JAX means the step after the last that any process asked about. That one does not come
        # where the numbers jump, from the start of a command into a resumed run for example.
        steps, _asked = dict.fromkeys((_asked + 1, step)), step
        return any([multihost_utils.reached_preemption_sync_point(n) for n in steps])

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
