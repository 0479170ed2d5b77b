"""Copies the files that a run appends to into an object store, which takes whole files only."""

import shutil
import threading
import time
from pathlib import Path

from etils import epath

from launch.cli import say
from launch.errors import Unreachable, store_failure
from launch.files import atomic_file

# Seconds between uploads: each sends a grown file anew as a whole.
_SECONDS = 30.0
# At most this share of the time goes into uploading.
_SHARE = 0.1


class Mirror:
    """Uploads a local folder's files whenever they change, in a thread; failures are retried."""

    def __init__(self, source: Path, target: epath.Path):
        """Starts the thread. Files in `source` may only grow, or be replaced atomically."""
        self._source, self._target = source, target
        self._copied: dict[Path, tuple[int, int]] = {}
        self._one_at_a_time, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        self._thread.start()

    def copy(self) -> bool:
        """Uploads what has changed and waits; returns whether the store now has everything."""
        failed = []
        with self._one_at_a_time:
            # Hidden files are incomplete ones.
            for path in sorted(self._source.rglob("[!.]*")):
                # Stores raise errors of many kinds; none of them is a reason to stop training.
                try:
                    self._copy(path)
                except Exception as error:
                    failed.append((path, error))
                    # The other files would wait just as long for a store that does not answer.
                    if isinstance(store_failure(error), Unreachable):
                        break
        if failed:
            first, failure = failed[0]
            reason = " ".join(str(failure).split()) or type(failure).__name__
            names = f"{self._name(first)}{f' and {len(failed) - 1} more' if failed[1:] else ''}"
            say(f"warning: cannot write {names} ({reason}); will try again later")
        return not failed

    def close(self) -> bool:
        """Ends the thread and copies once more, see `copy`."""
        self._ended.set()
        self._thread.join()
        return self.copy()

    def _work(self) -> None:
        pause = _SECONDS
        while not self._ended.wait(pause):
            began = time.monotonic()
            self.copy()
            pause = max(_SECONDS, (time.monotonic() - began) / _SHARE)

    def _copy(self, path: Path) -> None:
        if path.is_dir():
            return
        status = path.stat()
        # Size and time are taken before copying: what is appended meanwhile is uploaded next time.
        version = status.st_size, status.st_mtime_ns
        if self._copied.get(path) == version:
            return
        with path.open("rb") as file, atomic_file(self._name(path)) as copy:
            shutil.copyfileobj(file, copy)
        self._copied[path] = version

    def _name(self, path: Path) -> epath.Path:
        return self._target / str(path.relative_to(self._source))
