"""Watches the other processes of a job: if one is lost, the rest end, to be started again.

JAX would notice after 100 seconds and end them with a core dump. A step that waits for a lost
process never ends.
"""

import contextlib
import ctypes
import faulthandler
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
from jax._src import distributed

from launch.cli import say
from launch.errors import PREEMPTED

_BEAT_SECONDS = 2.0
# A process that is silent for this long is lost.
LOST_SECONDS = 15.0
# Before its first sign of life a process may take this long to find its devices.
_START_SECONDS = 300.0
# A process that is saving when another one left in order may continue for this long.
_FINISH_SECONDS = 120.0
# Prefixes of keys in the coordination service's store, and the states that process 0 announces.
_ALIVE, _TOLD = "launch/alive/", "launch/told/"
_LOST, _LEFT = "lost", "left"


class Watch:
    """Signals that this process is alive, and watches the others.

    All write to the store of JAX's coordination service, which lives in process 0. Process 0 alone
    reads what all write, and announces whom it misses. A call to a store that is gone can hang, so
    one thread makes the calls and another one judges.
    """

    def __init__(self) -> None:
        self._client: Any = distributed.global_state.client
        self._index = jax.process_index()
        # This process's exit code, once known; whether it is saving; from when on it is silent.
        self._code: int | None = None
        self._finishing, self._silent_from = False, float("inf")
        now = time.monotonic()
        # When the store last answered; by process, the last sign of life and when it came.
        self._reached = now
        self._heard = {n: ("", now + _START_SECONDS) for n in range(jax.process_count())}
        self._told: dict[str, str] = {}
        self._left_since: float | None = None

    def start(self) -> None:
        """Starts both threads."""
        for work in (self._talk, self._judge):
            threading.Thread(target=work, name="watch", daemon=True).start()

    def leave(self, code: int) -> None:
        """Tells the others that this process ends with a code other than 0."""
        self._code = code

    def be_silent(self) -> None:
        """Stops the signs of life, late enough that a process lost earlier is missed first."""
        self._silent_from = time.monotonic() + 2 * _BEAT_SECONDS

    def is_to_blame(self) -> bool:
        """Whether this process alone is announced as lost."""
        return self._told.get(_LOST) == str(self._index)

    @contextlib.contextmanager
    def finishing(self) -> Iterator[None]:
        """Inside, this process may finish saving even if another one has left in order."""
        self._finishing, before = True, self._finishing
        try:
            yield
        finally:
            self._finishing = before

    def end(self, which: str, gone: str = "is gone") -> None:
        """Says that process `which` `gone`, then ends this one, with its own exit code if known."""
        # os._exit: the main thread may hang in a collective, where no exception reaches it.
        try:
            if self._code is None:
                say(
                    f"lost: process {which} of this job {gone}; see its own output. What was saved "
                    "is kept: run the same command again on all hosts"
                )
        finally:
            os._exit(PREEMPTED if self._code is None else self._code)

    def _talk(self) -> None:
        while True:
            # The service ends with process 0; `verdict` notices that the store does not answer.
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                self.talk(time.monotonic())
            time.sleep(_BEAT_SECONDS)

    def talk(self, now: float) -> None:
        """Sends one sign of life and reads the announcements; `now` is as in `verdict`."""
        if now < self._silent_from:
            beat = str(now) if self._code is None else _LEFT
            self._client.key_value_set(f"{_ALIVE}{self._index}", beat, allow_overwrite=True)
        if self._index == 0:
            self._tell(now)
        told = self._client.key_value_dir_get(_TOLD)
        self._told = {key.removeprefix(_TOLD): numbers for key, numbers in told}
        self._reached = now

    def _tell(self, now: float) -> None:
        # In process 0 only: who has left, and who is lost?
        # Only changes count, timed by this host's clock: those of other hosts may differ.
        for key, beat in self._client.key_value_dir_get(_ALIVE):
            index = int(key.removeprefix(_ALIVE))
            if beat != self._heard[index][0]:
                self._heard[index] = beat, now
        late = [n for n, (_, when) in self._heard.items() if now - when > LOST_SECONDS]
        for state in (_LOST, _LEFT):
            numbers = [n for n in late if (self._heard[n][0] == _LEFT) == (state == _LEFT)]
            if numbers:
                text = ", ".join(map(str, numbers))
                self._client.key_value_set(f"{_TOLD}{state}", text, allow_overwrite=True)

    def _judge(self) -> None:
        while True:
            # Ends the process even if it can run no Python code, as when a library holds its lock.
            faulthandler.dump_traceback_later(4 * LOST_SECONDS, exit=True, file=2)
            if verdict := self.verdict(time.monotonic()):
                # The store ends with process 0: let the others read it first.
                time.sleep(2 * _BEAT_SECONDS if self._index == 0 else 0)
                self.end(*verdict)
            time.sleep(_BEAT_SECONDS / 2)

    def verdict(self, now: float) -> tuple[str, str] | None:
        """Why this process must end: (which others are missing, what happened), or None.

        `now` is seconds of the monotonic clock.
        """
        # 1. A process is lost: collectives with it never end.
        if lost := self._others(_LOST):
            return lost, "is gone"
        # 2. The store has gone silent, so process 0 is lost.
        if now - self._reached > LOST_SECONDS:
            return "0", "is gone"
        # 3. A process left in order: let a save under way finish.
        left = self._others(_LEFT)
        if left and self._left_since is None:
            self._left_since = now
        patience = _FINISH_SECONDS if self._finishing else 0.0
        if self._left_since is not None and now - self._left_since >= patience:
            return left, "has ended"
        return None

    def _others(self, state: str) -> str:
        numbers = self._told.get(state, "").split(", ")
        return ", ".join(n for n in numbers if n not in ("", str(self._index)))


_watches: list[Watch] = []


def watch() -> None:
    """Starts to watch; for a job of several processes that have joined."""
    _watches.append(Watch())
    _watches[0].start()
    if jax.process_index() > 0:
        # When process 0 is gone, JAX aborts from a thread of C++, past Python's signal handlers.
        ctypes.CDLL(None).signal(signal.SIGABRT, _on_abort)


def leave(code: int) -> None:
    """Call when this process ends with `code`; if it failed, the others soon end too."""
    for running in _watches if code else ():
        running.leave(code)


def finishing() -> contextlib.AbstractContextManager[None]:
    """See `Watch.finishing`."""
    return _watches[0].finishing() if _watches else contextlib.nullcontext()


def wait_for_the_end() -> None:
    """Waits until the watch has decided whether a step failed because a process was lost."""
    # If none was, this process is the one at fault, and the others need not wait for it.
    deadline = time.monotonic() + LOST_SECONDS + 6 * _BEAT_SECONDS
    _watches[0].be_silent()
    while time.monotonic() < deadline and not _watches[0].is_to_blame():
        time.sleep(_BEAT_SECONDS / 4)


# Called by C: is process 0, the coordinator, still there?
@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_abort(number: int) -> None:
    host, _, port = str(distributed.global_state.coordinator_address).rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        _watches[0].end("0")
    # Any other abort continues: the handler returns, and abort() raises the signal again.
