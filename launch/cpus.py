"""The CPUs that this process may use; the machine may have more."""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_MEMBERSHIP, _CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def usable_cpus() -> int:
    """CPUs that affinity (taskset, Slurm) and the quota of the cgroups allow, at least 1."""
    if hasattr(os, "sched_getaffinity"):  # Not on macOS.
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    return min([count, *map(math.ceil, _quotas())])  # A quota of 1.5 counts as 2.


def _quotas() -> Iterator[float]:
    """The quotas, in CPUs, of this process's cgroups and those above them; not all have one."""
    try:
        lines = _MEMBERSHIP.read_text().splitlines()
    except OSError:
        return
    # A line is ID:CONTROLLERS:PATH; version 2 of cgroups has one tree, without controllers.
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # In a container the path may be the host's, with only its root mounted: so try the parents.
        for group in (PurePosixPath(path), *PurePosixPath(path).parents):
            folder = _CGROUPS / controllers / group.relative_to("/")
            # Version 2: cpu.max is "150000 100000" (microseconds per period) or "max 100000".
            # Version 1: cpu.cfs_quota_us, -1 for no limit, and cpu.cfs_period_us.
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
            numbers = " ".join(_text(folder / name) for name in names).split()
            if len(numbers) == 2 and all(n.isdecimal() and int(n) for n in numbers):
                yield int(numbers[0]) / int(numbers[1])


def _text(path: Path) -> str:
    """A file's text; '' where it is missing, as at the root, or unreadable."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
