"""How many CPUs a process may use."""

import os

import pytest

from launch import cpus


@pytest.mark.parametrize(
    ("membership", "files", "count"),
    [
        ("", {}, 8),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "max 100000"}, 8),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "250000 100000"}, 3),
        ("0::/a/b", {"a/b/cpu.max": "20000 100000", "a/cpu.max": "250000 100000"}, 1),
        ("0::/a", {"a/cpu.max": "9900000 100000"}, 8),
        ("0::/of/the/host", {"cpu.max": "400000 100000"}, 4),
        ("0::/../..", {"cpu.max": "400000 100000"}, 4),
        (
            "5:memory:/m\n4:cpu,cpuacct:/a",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "200000", "cpu,cpuacct/a/cpu.cfs_period_us": "1e5"},
            8,
        ),
        (
            "5:memory:/m\n4:cpu,cpuacct:/a\n0::/a",
            {
                "cpu,cpuacct/a/cpu.cfs_quota_us": "-1",
                "cpu,cpuacct/a/cpu.cfs_period_us": "100000",
                "cpu,cpuacct/cpu.cfs_quota_us": "200000",
                "cpu,cpuacct/cpu.cfs_period_us": "100000",
                "memory/m/cpu.cfs_quota_us": "100000",
                "memory/m/cpu.cfs_period_us": "100000",
            },
            2,
        ),
    ],
)
def test_cpus_by_cgroups(tmp_path, monkeypatch, membership, files, count):
    (tmp_path / "cgroup").write_text(membership + "\n" * bool(membership))
    for name, text in files.items():
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    monkeypatch.setattr(cpus, "_MEMBERSHIP", tmp_path / "cgroup")
    monkeypatch.setattr(cpus, "_CGROUPS", tmp_path / "tree")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert cpus.usable_cpus() == count


def test_without_affinity_and_cgroups_it_is_the_machines(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(cpus, "_MEMBERSHIP", tmp_path / "none")
    assert cpus.usable_cpus() == os.cpu_count()
