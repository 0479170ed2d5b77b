"""Watching the other processes of a job: when one is lost, the rest end, to be started again.

JAX would notice after 100 seconds, and end them with a core dump; a step that waits for the lost
one never ends by itself.
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
# A process that is not heard of for so long is lost.
LOST_SECONDS = 15.0
# Until it is first heard of: it has to find its devices.
_START_SECONDS = 300.0
# Who is saving when another one has left in order may go on for so long.
_FINISH_SECONDS = 120.0
_ALIVE, _TOLD = "launch/alive/", "launch/told/"
_LOST, _LEFT = "lost", "left"


class Watch:
    """Says that this process is alive, and looks for those that are not.

    All write to the store of JAX's coordination service, which process 0 keeps; it alone reads what
    all have written, and tells the others whom it misses. A call to a store that is gone can wait
    for long, so one thread calls and another one judges.
    """

    def __init__(self) -> None:
        self._client: Any = distributed.global_state.client
        self._index = jax.process_index()
        self._code: int | None = None
        self._finishing, self._silent_from = False, float("inf")
        now = time.monotonic()
        self._reached = now
        self._heard = {n: ("", now + _START_SECONDS) for n in range(jax.process_count())}
        self._told: dict[str, str] = {}
        self._left_since: float | None = None

    def start(self) -> None:
        """Begins."""
        for work in (self._talk, self._judge):
            threading.Thread(target=work, name="watch", daemon=True).start()

    def leave(self, code: int) -> None:
        """Tells the others that this process ends with a code that is not 0."""
        self._code = code

    def be_silent(self) -> None:
        """Has the others take this process for lost, but not before one that was lost already."""
        self._silent_from = time.monotonic() + 2 * _BEAT_SECONDS

    def is_to_blame(self) -> bool:
        """Whether this process alone is taken for lost."""
        return self._told.get(_LOST) == str(self._index)

    @contextlib.contextmanager
    def finishing(self) -> Iterator[None]:
        """While this process saves, it is not ended because another one has left in order."""
        self._finishing, before = True, self._finishing
        try:
            yield
        finally:
            self._finishing = before

    def end(self, which: str, gone: str = "is gone") -> None:
        """Ends this process, with its own code if it has one.

        Args:
            which: the numbers of the processes that are gone.
            gone: what is said of them.
        """
        try:
            if self._code is None:
                say(
                    f"lost: process {which} of this job {gone}; see its own output. What "
                    "was saved is kept: run the same command again on all"
                )
        finally:
            os._exit(PREEMPTED if self._code is None else self._code)

    def _talk(self) -> None:
        while True:
            # The service is gone with process 0, or at the end of the job: then nothing is reached.
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                self.talk(time.monotonic())
            time.sleep(_BEAT_SECONDS)

    def talk(self, now: float) -> None:
        """Says once that this process is alive, and hears what process 0 tells.

        Args:
            now: as for `verdict`.
        """
        if now < self._silent_from:
            beat = str(now) if self._code is None else _LEFT
            self._client.key_value_set(f"{_ALIVE}{self._index}", beat, allow_overwrite=True)
        if self._index == 0:
            self._tell(now)
        told = self._client.key_value_dir_get(_TOLD)
        self._told = {key.removeprefix(_TOLD): numbers for key, numbers in told}
        self._reached = now

    def _tell(self, now: float) -> None:
        """Process 0 tells which have left, and which are not heard of."""
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
            # A process that can run no Python code ends all the same.
            faulthandler.dump_traceback_later(4 * LOST_SECONDS, exit=True, file=2)
            if verdict := self.verdict(time.monotonic()):
                # The store ends with process 0: the others look at it before.
                time.sleep(2 * _BEAT_SECONDS if self._index == 0 else 0)
                self.end(*verdict)
            time.sleep(_BEAT_SECONDS / 2)

    def verdict(self, now: float) -> tuple[str, str] | None:
        """Why this process has to end: which others are gone, and how; None while it need not.

        Args:
            now: of the monotonic clock, in seconds.
        """
        if lost := self._others(_LOST):
            return lost, "is gone"
        if now - self._reached > LOST_SECONDS:
            return "0", "is gone"
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


def finishing() -> contextlib.AbstractContextManager[None]:
    """See `Watch.finishing`."""
    return _watches[0].finishing() if _watches else contextlib.nullcontext()


def wait_for_the_end() -> None:
    """Waits until all have been looked for: a step can fail because a process was lost.

    If none was, this process is the one that fails, and the others need not wait for it.
    """
    deadline = time.monotonic() + LOST_SECONDS + 6 * _BEAT_SECONDS
    _watches[0].be_silent()
    while time.monotonic() < deadline and not _watches[0].is_to_blame():
        time.sleep(_BEAT_SECONDS / 4)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_abort(number: int) -> None:
    host, _, port = str(distributed.global_state.coordinator_address).rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        _watches[0].end("0")
    # What aborts for another reason goes on to do so.
