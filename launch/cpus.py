"""The CPUs that this process may use; the machine may have more."""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_MEMBERSHIP, _CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def usable_cpus() -> int:
    """CPUs of this process's affinity (taskset, Slurm), or of its cgroups' quota if that is less.

    At least 1; a quota of 1.5 counts as 2.
    """
    if hasattr(os, "sched_getaffinity"):  # Not on macOS.
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    return min([count, *map(math.ceil, _quotas())])


def _quotas() -> Iterator[float]:
    """CPUs that each cgroup of this process, and those above it, leave; some set no limit.

    Version 2 has one tree with `cpu.max` ("150000 100000" or "max 100000"), version 1 one of the
    controller cpu with `cpu.cfs_quota_us` (-1 for no limit) and `cpu.cfs_period_us`.
    """
    try:
        lines = _MEMBERSHIP.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # In a container the path may be the host's, of which only the root is mounted.
        for group in (PurePosixPath(path), *PurePosixPath(path).parents):
            folder = _CGROUPS / controllers / group.relative_to("/")
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
            numbers = " ".join(_text(folder / name) for name in names).split()
            if len(numbers) == 2 and all(n.isdecimal() and int(n) for n in numbers):
                yield int(numbers[0]) / int(numbers[1])


def _text(path: Path) -> str:
    """Of a file; '' where it is missing, as at the root, or may not be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
