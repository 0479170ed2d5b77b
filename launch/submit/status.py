"""What `launch.submit status` prints."""

import contextlib
import datetime
import shlex

from launch import goodput
from launch.errors import PREEMPTED, InputError
from launch.submit.record import Record

# As in the table of launch/cli.py, with the codes of signals (128 + number).
_MEANINGS = {
    0: "done",
    1: "failed",
    2: "wrong input, or a full disk",
    PREEMPTED: "preempted, or another process was lost",
    130: "interrupted",
    137: "killed",
    143: "ended by SIGTERM",
}


def show(record: Record) -> None:
    """Prints a record, one fact per line."""
    began = datetime.datetime.fromtimestamp(record.submitted).strftime("%Y-%m-%d %H:%M")
    lines = {
        "job": f"{record.name} ({record.mode}, since {began})",
        "state": record.state,
        "command": shlex.join(record.command),
        "commit": record.commit or "unknown",
        **{key.replace("_", " "): x for key, x in record.resource.items() if _is_short(x)},
    }
    # Some clusters report every exit code, some only the last one and a count.
    if record.exit_codes:
        last = record.exit_codes[-1]
        meaning = _MEANINGS.get(last, "failed")
        count = max(len(record.exit_codes), record.attempts)
        lines["attempts"] = f"{count}; the last exit code is {last}: {meaning}"
    elif record.attempts:
        lines["attempts"] = str(record.attempts)
    # From goodput.jsonl: what restarts cost.
    if record.workdir and (attempts := _attempts(record.workdir)):
        lines["training"] = goodput.summary(attempts)
    for name, value in lines.items():
        print(f"{name}: {value}")


def _is_short(value: object) -> bool:
    return isinstance(value, str | int) and value != ""


def _attempts(workdir: str) -> list[goodput.Attempt]:
    """The attempts of the run, if this machine can see it."""
    # A store may not answer or want a login; the rest of the status is worth printing anyway.
    with contextlib.suppress(OSError, ImportError, KeyError, InputError, ValueError):
        return goodput.read_attempts(workdir)
    return []
