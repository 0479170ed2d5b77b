"""Which process of which machine has a job in hand, and whether it is still running."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def own() -> dict[str, Any]:
    """Identifies this process for other terminals."""
    return dict(host=os.uname().nodename, pid=os.getpid(), since=_since(os.getpid()))


def is_elsewhere(terminal: Mapping[str, Any]) -> bool:
    """Whether it is on another machine, whose processes cannot be seen from here."""
    return terminal["host"] != os.uname().nodename


def is_gone(terminal: Mapping[str, Any]) -> bool:
    """Whether it has ended, as far as this machine can tell."""
    # Process numbers are reused, so its start time must match too.
    return not is_elsewhere(terminal) and _since(terminal["pid"]) != terminal["since"]


def is_another(terminal: Mapping[str, Any]) -> bool:
    """Whether another process of this machine has the job in hand."""
    is_here = not is_elsewhere(terminal) and not is_gone(terminal)
    return is_here and terminal["pid"] != os.getpid()


def _since(pid: int) -> str:
    """When a process started, as the system writes it; '' if no process has this number."""
    try:
        # proc(5): field 22 is the start time in clock ticks since boot. Field 2, the name, may
        # contain spaces and parentheses. Container images may lack `ps`.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (IndexError, OSError):
        if Path("/proc/self/stat").exists():
            return ""
    # macOS. Another terminal may use another language or time zone.
    environment = os.environ | {"LC_ALL": "C", "TZ": "UTC"}
    command = ["ps", "-o", "lstart=", "-p", str(pid)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    return done.stdout.strip()
