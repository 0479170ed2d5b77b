"""Which process of which machine has a job in its hands, and whether it is still there."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def own() -> dict[str, Any]:
    """What this process is found by from another terminal."""
    return dict(host=os.uname().nodename, pid=os.getpid(), since=_since(os.getpid()))


def is_elsewhere(terminal: Mapping[str, Any]) -> bool:
    """Whether it is of another machine, whose processes cannot be seen from here."""
    return terminal["host"] != os.uname().nodename


def is_gone(terminal: Mapping[str, Any]) -> bool:
    """Whether it has ended, as far as can be seen from here."""
    # Numbers of processes come again.
    return not is_elsewhere(terminal) and _since(terminal["pid"]) != terminal["since"]


def is_another(terminal: Mapping[str, Any]) -> bool:
    """Whether another process of this machine has the job in its hands."""
    is_here = not is_elsewhere(terminal) and not is_gone(terminal)
    return is_here and terminal["pid"] != os.getpid()


def _since(pid: int) -> str:
    """When a process was started, in the system's words; empty if there is none of that number."""
    try:
        # proc(5); the name before it may hold any characters. Images of containers have no `ps`.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (IndexError, OSError):
        if Path("/proc/self/stat").exists():
            return ""
    # Another terminal may have another language, or another time of day.
    environment = os.environ | {"LC_ALL": "C", "TZ": "UTC"}
    command = ["ps", "-o", "lstart=", "-p", str(pid)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    return done.stdout.strip()
