"""The counts of `python -m tests.words`, and the option --messages of pytest."""

import subprocess
import sys

from tests.support import ROOT
from tests.words import count

MODULE = '''"""Opens.

Twice.
"""

text = """no docstring"""


def twice(x):  # a number
    """Doubles."""
    # By a sum.
    return x + x
'''
PROVOKED = """
import pytest
from launch.errors import Diverged, InputError

@pytest.mark.parametrize("field", ["b", "a", "b"])
def test_refused(field, tmp_path):
    with pytest.raises(InputError, match="must"):
        raise InputError(f"{field} must be 1,\\n got {tmp_path}/x")
    Diverged("loss is nan")
"""


def test_lines_are_counted():
    assert count(MODULE) == (12, 5, 2)


def test_messages_are_written_once_and_sorted(tmp_path):
    test, out = tmp_path / "test_provoked.py", tmp_path / "messages.txt"
    test.write_text(PROVOKED)
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "tests.support.messages"]
    command += ["-p", "no:cacheprovider", "-c", "/dev/null", test, f"--messages={out}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert out.read_text().splitlines() == [
        "a must be 1, got DIR/x",
        "b must be 1, got DIR/x",
        "loss is nan",
    ]
