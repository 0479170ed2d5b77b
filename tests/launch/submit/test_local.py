"""Processes of this machine: how they are started, and how they end."""

import sys

import pytest

from tests.launch.submit.stand_ins import check_golden

TASK = (
    "--",
    "python",
    "-m",
    "imagen_ft.finetune",
    "--config=a.py:k=1,b=two words",
    "--workdir=run",
)
# A process that says what it is, and ends when it is told.
STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("one", ()),
        ("four", ("--processes=4", "--devices=cpu")),
        ("workers", ("--workers=2",)),
    ],
)
def test_commands(job, capsys, name, options):
    assert job("local", "--dry_run", *options, *TASK) == 0
    check_golden(f"local_{name}.txt", capsys.readouterr().out)


def script(text):
    return [sys.executable, "-c", text]
