"""Files that a run adds to, on their way to an object store, which takes whole files only."""

import shutil
import threading
import time
from pathlib import Path

from etils import epath

from launch.cli import say
from launch.errors import Unreachable, store_failure
from launch.files import atomic_file

# A file that grew is uploaded whole, after so long at the earliest.
_SECONDS = 30.0
# And uploading takes no more than so much of the time.
_SHARE = 0.1


class Mirror:
    """Copies the files of a local folder to a store whenever they have changed, in a thread.

    A copy that fails is said, and tried again: whoever writes to the folder never waits for it.
    """

    def __init__(self, source: Path, target: epath.Path):
        """Begins.

        Args:
            source: the folder; its files only grow, or get new content at once.
            target: where the same names go.
        """
        self._source, self._target = source, target
        self._copied: dict[Path, tuple[int, int]] = {}
        self._one_at_a_time, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        self._thread.start()

    def copy(self) -> bool:
        """Copies what has changed, and waits for that; says whether the store has all of it."""
        failed = []
        with self._one_at_a_time:
            # Names with a dot are of what is not whole yet.
            for path in sorted(self._source.rglob("[!.]*")):
                # A store's errors are of many kinds. None of them is a reason to stop training.
                try:
                    self._copy(path)
                except Exception as error:
                    failed.append((path, error))
                    # The others would wait as long for its answer.
                    if isinstance(store_failure(error), Unreachable):
                        break
        if failed:
            first, failure = failed[0]
            reason = " ".join(str(failure).split()) or type(failure).__name__
            names = f"{self._name(first)}{f' and {len(failed) - 1} more' if failed[1:] else ''}"
            say(f"warning: cannot write {names} ({reason}); will try again later")
        return not failed

    def close(self) -> bool:
        """Copies for the last time, see `copy`."""
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
        version = status.st_size, status.st_mtime_ns
        if self._copied.get(path) == version:
            return
        with path.open("rb") as file, atomic_file(self._name(path)) as copy:
            shutil.copyfileobj(file, copy)
        self._copied[path] = version

    def _name(self, path: Path) -> epath.Path:
        return self._target / str(path.relative_to(self._source))
