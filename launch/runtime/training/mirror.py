"""Files that a run adds to, on their way to an object store, which takes whole files only."""

import threading
import time
from pathlib import Path

from etils import epath

from launch.cli import say
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
        with self._one_at_a_time:
            # Names with a dot are of what is not whole yet.
            paths = [path for path in sorted(self._source.rglob("[!.]*")) if path.is_file()]
            return all([self._copy(path) for path in paths])

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

    def _copy(self, path: Path) -> bool:
        status = path.stat()
        version = status.st_size, status.st_mtime_ns
        if self._copied.get(path) == version:
            return True
        target = self._target / str(path.relative_to(self._source))
        try:
            with path.open("rb") as file, atomic_file(target) as copy:
                while block := file.read(1 << 20):
                    copy.write(block)
        # A store's errors are of many kinds. None of them is a reason to stop training.
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            say(f"warning: {target} cannot be written ({reason}); it is tried again later")
            return False
        self._copied[path] = version
        return True
