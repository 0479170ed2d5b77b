"""The option --messages=FILE of pytest: collects all messages that the tests provoke, for reading.

sh launch/test.sh --messages=messages.txt
"""

import functools
import re
from pathlib import Path

from launch.errors import Failed, InputError

_TEMPORARY = re.compile(r"(/[^\s,;:'\"]+)?/pytest-of-[^/]+/pytest-\d+(/popen-gw\d+)?/[^/\s,;:'\"]+")


def pytest_addoption(parser):
    about = "writes every message of an InputError or Failed here, sorted, each once"
    parser.addoption("--messages", type=Path, help=about)


def pytest_configure(config):
    """Makes the errors of this process append their messages to the file."""
    file = config.getoption("messages")
    if file is None:
        return
    file = file.absolute()  # tests change the current folder
    if not hasattr(config, "workerinput"):  # pytest-xdist's workers start after the first process
        file.write_text("")
    for kind in (InputError, Failed):
        kind.__init__ = _recording(kind.__init__, file)


def _recording(init, file):
    @functools.wraps(init)
    def recording(self, *args):
        init(self, *args)
        line = _TEMPORARY.sub("DIR", " ".join(str(self).split()))
        # Each line is one write, so that lines of several workers do not mix.
        with file.open("a", errors="backslashreplace") as lines:
            lines.write(f"{line}\n")

    return recording


def pytest_unconfigure(config):
    """Sorts the messages once all workers have ended."""
    file = config.getoption("messages")
    if file is not None and not hasattr(config, "workerinput"):
        file.write_text("".join(f"{line}\n" for line in sorted(set(file.read_text().splitlines()))))
