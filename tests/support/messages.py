"""The option --messages=FILE of pytest: all messages that the tests provoke, to be read as a whole.

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
    """Lets the errors of this process add their messages to the file."""
    file = config.getoption("messages")
    if file is None:
        return
    file = file.absolute()  # tests change the current folder
    if not hasattr(config, "workerinput"):  # pytest-xdist's workers come after the first process
        file.write_text("")
    for kind in (InputError, Failed):
        kind.__init__ = _recording(kind.__init__, file)


def _recording(init, file):
    @functools.wraps(init)
    def recording(self, *args):
        init(self, *args)
        line = _TEMPORARY.sub("DIR", " ".join(str(self).split()))
        # A line is added by one write, which no other worker's gets into.
        with file.open("a") as lines:
            lines.write(f"{line}\n")

    return recording


def pytest_unconfigure(config):
    """Sorts the messages once all workers have ended."""
    file = config.getoption("messages")
    if file is not None and not hasattr(config, "workerinput"):
        file.write_text("".join(f"{line}\n" for line in sorted(set(file.read_text().splitlines()))))
