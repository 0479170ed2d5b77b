"""Watching the other processes of a job: when one is lost, the rest end, to be started again.

JAX would notice after 100 seconds, and end them with a core dump; a step that waits for the lost
one never ends by itself.
"""

import ctypes
import os
import signal
import socket
import threading
import time
from typing import Any

import jax
from jax._src import distributed

from launch.cli import say
from launch.errors import PREEMPTED

_BEAT_SECONDS = 2.0
# A process that is not heard of for so long is lost.
LOST_SECONDS = 15.0
_ALIVE, _LOST = "launch/alive/", "launch/lost"


class Watch(threading.Thread):
    """Says that this process is alive, and looks for those that are not.

    All write to the store of JAX's coordination service, which process 0 keeps; it alone reads what
    all have written, and tells the others whom it misses.
    """

    def __init__(self) -> None:
        super().__init__(name="watch", daemon=True)
        self._client: Any = distributed.global_state.client
        self._code: int | None = None
        self._index, self._count = jax.process_index(), jax.process_count()
        self._heard = {index: ("", time.monotonic()) for index in range(self._count)}
        self._reached = time.monotonic()

    def run(self) -> None:
        """Looks every two seconds; ends the process when another one is lost."""
        while True:
            if lost := self._look():
                self.end(lost)
            time.sleep(_BEAT_SECONDS)

    def leave(self, code: int) -> None:
        """Has the others take this process for lost, unless they end by themselves in time.

        Args:
            code: that it ends with.
        """
        self._code = code

    def end(self, lost: str) -> None:
        """Ends this process.

        Args:
            lost: numbers of the processes that are gone.
        """
        if self._code is None:
            say(
                f"lost: process {lost} of this job is gone, its own output says why; what was "
                "saved is kept: run the same command again on all"
            )
        os._exit(PREEMPTED if self._code is None else self._code)

    def _look(self) -> str:
        """Numbers of the lost processes, with commas between; empty when there is none."""
        try:
            if self._code is None:
                beat = str(time.monotonic())
                self._client.key_value_set(f"{_ALIVE}{self._index}", beat, allow_overwrite=True)
            if self._index == 0:
                self._tell(self._missing())
            told = dict(self._client.key_value_dir_get("launch/"))
        except jax.errors.JaxRuntimeError:
            # The service is gone with process 0, or at the end of the job.
            return "0" if time.monotonic() - self._reached > LOST_SECONDS else ""
        self._reached = time.monotonic()
        return told.get(_LOST, "")

    def _missing(self) -> list[int]:
        now = time.monotonic()
        for key, beat in self._client.key_value_dir_get(_ALIVE):
            index = int(key.removeprefix(_ALIVE))
            if beat != self._heard[index][0]:
                self._heard[index] = beat, now
        return [n for n, (_, when) in self._heard.items() if now - when > LOST_SECONDS]

    def _tell(self, missing: list[int]) -> None:
        if missing:
            names = ", ".join(map(str, missing))
            self._client.key_value_set(_LOST, names, allow_overwrite=True)
            # The store ends with this process: the others look at it before.
            time.sleep(2 * _BEAT_SECONDS)


_watches: list[Watch] = []


def watch() -> None:
    """Begins to watch, in a job of several processes that have found each other."""
    _watches.append(Watch())
    _watches[0].start()
    if jax.process_index() > 0:
        # When process 0 is gone, JAX aborts, in a thread that no Python code is told of.
        ctypes.CDLL(None).signal(signal.SIGABRT, _on_abort)


def leave(code: int) -> None:
    """Is told how this process ends; when it fails, the others do not wait for it for long."""
    for running in _watches if code else ():
        running.leave(code)


def wait_for_the_end() -> None:
    """Waits until the watch has looked for everyone: a step can fail because a process was lost."""
    time.sleep(LOST_SECONDS + 3 * _BEAT_SECONDS)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_abort(number: int) -> None:
    host, _, port = str(distributed.global_state.coordinator_address).rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        _watches[0].end("0")
    signal.signal(number, signal.SIG_DFL)
