"""What `launch.submit status` prints."""

import datetime
import shlex

from launch.errors import PREEMPTED
from launch.submit.record import Record

# As in the table of launch/cli.py.
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
    """Prints a record, a line a fact."""
    began = datetime.datetime.fromtimestamp(record.submitted).strftime("%Y-%m-%d %H:%M")
    lines = {
        "job": f"{record.name} ({record.mode}, since {began})",
        "state": record.state,
        "command": shlex.join(record.command),
        "commit": record.commit,
        **{key.replace("_", " "): value for key, value in record.resource.items()},
    }
    if record.exit_codes:
        last = record.exit_codes[-1]
        meaning = _MEANINGS.get(last, "failed")
        lines["attempts"] = f"{len(record.exit_codes)}; the last exit code is {last}: {meaning}"
    for name, value in lines.items():
        print(f"{name}: {value}")
