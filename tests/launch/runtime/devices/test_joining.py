"""When a process takes itself for one of several; several are in tests/multihost."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import tempfile
from unittest import mock

import jax
import pytest
from absl import flags
from jax._src import distributed as jax_distributed

from launch.errors import PREEMPTED, InputError
from launch.runtime.devices import gpus, job, joining
from tests.launch.cluster_variables import (
    GKE_GPU,
    GKE_TPU,
    OPEN_MPI,
    SLURM,
    SLURM_EIGHT,
    SLURM_SCRIPT,
)


def values(*argv):
    found = flags.FlagValues()
    joining.define_flags(found)
    found(["task", *argv])
    return found


BY_HAND = ["--coordinator=h:1", "--num_processes=2", "--process_id=1"]
BY_HAND_ARGUMENTS = dict(coordinator_address="h:1", num_processes=2, process_id=1)
SLURM_ADDRESS = "gpu07:63462"
JOINED = {
    "alone": ([], {}, None),
    "of Slurm": (
        [],
        SLURM,
        dict(coordinator_address=SLURM_ADDRESS, num_processes=2, process_id=1),
    ),
    "of Slurm, for each GPU": (
        ["--coordinator=auto"],
        SLURM_EIGHT,
        dict(coordinator_address=SLURM_ADDRESS, num_processes=16, process_id=11),
    ),
    "of Slurm by hand": (BY_HAND, SLURM_EIGHT, BY_HAND_ARGUMENTS),
    "of Slurm, but alone": (["--coordinator=none"], SLURM, None),
    "a batch script's first node": (["--coordinator=none"], SLURM_SCRIPT, None),
    "a TPU host": ([], GKE_TPU, {}),
    "of MPI": ([], OPEN_MPI, {}),
    "asked for": (["--coordinator=auto"], {}, {}),
    "by hand": (BY_HAND, {}, BY_HAND_ARGUMENTS),
    "a pod": ([], GKE_GPU, None),
    "a pod of a TPU host": (["--coordinator=auto"], GKE_TPU, {}),
}


@pytest.mark.parametrize(("argv", "environment", "expected"), JOINED.values(), ids=JOINED)
def test_who_is_joined(argv, environment, expected):
    # With an empty list JAX takes no GPU away; `gpus.share` has the last word.
    arguments = joining.join_arguments(values(*argv), environment)
    assert arguments == (expected if expected is None else {"local_device_ids": [], **expected})


NOT_JOINED = {
    "a number without an address": (["--num_processes=2"], {}, "need --coordinator"),
    "a number of auto": (["--coordinator=auto", "--process_id=0"], {}, "need --coordinator"),
    "a number of none": (["--coordinator=none", "--process_id=0"], {}, "need --coordinator"),
    "no port": (
        ["--coordinator=h", *BY_HAND[1:]],
        {},
        "--coordinator must be HOST:PORT of process 0, auto",
    ),
    "no number": (BY_HAND[:2], {}, "needs --num_processes and --process_id"),
    "number": ([*BY_HAND[:2], "--process_id=2"], {}, "must be from 0 to 1"),
    "a batch script": ([], SLURM_SCRIPT, "Slurm's SLURM_NTASKS=2: without srun a command is one"),
    "a batch script, auto": (["--coordinator=auto"], SLURM_SCRIPT, "start it with srun"),
    "a variable": ([], SLURM | {"SLURM_PROCID": "x"}, "SLURM_PROCID is not a number ('x')"),
    "Kubernetes": (["--coordinator=auto"], GKE_GPU, 'pip install ".[gke]" first'),
}


@pytest.mark.parametrize(("argv", "environment", "said"), NOT_JOINED.values(), ids=NOT_JOINED)
def test_who_cannot_be_joined(monkeypatch, argv, environment, said):
    monkeypatch.setattr(joining, "find_spec", lambda name: None)
    with pytest.raises(InputError) as raised:
        joining.join_arguments(values(*argv), environment)
    assert said in str(raised.value)


def test_two_processes_with_one_number(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **k: calls.append(k))
    monkeypatch.setattr(joining, "_divide_gpus", lambda environment: None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    numbers = [
        values("--coordinator=h:1", "--num_processes=3", f"--process_id={n}") for n in (1, 2, 2)
    ]
    joining.initialize(numbers[0], {})
    joining.initialize(numbers[1], {})
    with pytest.raises(
        InputError, match=r"process_id=2 is taken by another process of the job at h:1"
    ):
        joining.initialize(numbers[2], {})
    assert len(calls) == 2


def test_numbers_where_no_file_can_be_locked(tmp_path, monkeypatch):
    def refused(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refused)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    # Nothing is left that would keep out who comes after a killed process.
    for _ in range(2):
        joining._take_number("h:2", 1)
    assert {path.stat().st_size for path in tmp_path.iterdir()} <= {0}


def test_a_pod_that_can_ask(monkeypatch):
    monkeypatch.setattr(joining, "find_spec", lambda name: name == "kubernetes" or None)
    arguments = joining.join_arguments(values("--coordinator=auto"), GKE_GPU)
    assert arguments == {"local_device_ids": []}


@pytest.fixture
def detection(monkeypatch):
    """JAX asks the cluster, although this process has computed already."""
    monkeypatch.setattr(jax.distributed, "initialize", jax_distributed.State().initialize)
    for name in SLURM | GKE_GPU | OPEN_MPI:
        monkeypatch.delenv(name, raising=False)


def test_no_cluster_that_jax_knows(detection):
    for argv, environment in ((["--coordinator=auto"], {}), ([], GKE_TPU)):
        with pytest.raises(
            InputError,
            match=r'pip install "jax\[tpu\]" first, elsewhere pass --coordinator=HOST:PORT',
        ):
            joining.initialize(values(*argv), environment)
    assert not jax.distributed.is_initialized()


def test_a_port_that_another_job_has(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(jax.distributed, "initialize", lambda **k: pytest.fail("it would crash"))
    with socket.create_server(("", 0)) as other:
        # As JAX's own does.
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        for port, why in ((other.getsockname()[1], "in use"), (99999, "0-65535")):
            first = values(f"--coordinator=h:{port}", "--num_processes=2", "--process_id=0")
            with pytest.raises(InputError, match=rf"on the port of h:{port} \(.*{why}.* another"):
                joining.initialize(first, {})


def test_a_cluster_that_does_not_answer(detection, monkeypatch):
    """Open MPI's variables are there, but what JAX looks for in them is not."""
    for name, value in (OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "12.0;udp://x"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        InputError, match=r"does not list .* \(Could not parse coordinator IP .*\);"
    ):
        joining.initialize(values(), OPEN_MPI)


def test_others_that_do_not_come(monkeypatch, capsys):
    ended = []
    monkeypatch.setattr(joining, "JOIN_SECONDS", 0.0)
    monkeypatch.setattr(joining.os, "_exit", ended.append)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **k: joined.wait(30))
    joined = mock.Mock(wait=lambda seconds: [t.join(seconds) for t in timers])
    timers = []
    timer = joining.threading.Timer

    def keep(*arguments):
        timers.append(timer(*arguments))
        return timers[-1]

    monkeypatch.setattr(joining.threading, "Timer", keep)
    joining._join({})
    assert ended == [PREEMPTED]
    said = capsys.readouterr().err
    assert said.startswith("lost: some processes of this job did not join")
    assert "or pass --coordinator=none if this one is alone" in said


class Store:
    """The store of JAX's coordination service, with what another process has written."""

    def __init__(self, other, topic="launch/gpus/"):
        self.entries = {f"{topic}1": json.dumps(other)}

    def key_value_set(self, key, value):
        self.entries[key] = value

    def wait_at_barrier(self, name, timeout):
        assert timeout > 1000

    def key_value_dir_get(self, prefix):
        return [(key, x) for key, x in self.entries.items() if key.startswith(prefix)]


def divide(monkeypatch, other, own=("a", "b")):
    used = []
    state = mock.Mock(client=Store(other), process_id=0)
    monkeypatch.setattr(joining.distributed, "global_state", state)
    monkeypatch.setattr(gpus, "visible", lambda environment: list(own))
    monkeypatch.setattr(gpus, "restrict", used.extend)
    joining._divide_gpus({})
    return used


def test_gpus_are_divided(monkeypatch):
    assert divide(monkeypatch, [["a", "b"], ""]) == ["a"]
    assert divide(monkeypatch, [["c"], ""]) == ["a", "b"]
    assert divide(monkeypatch, [[], ""], own=()) == []
    with pytest.raises(
        InputError, match="processes 0 and 1 of this job share some GPUs, but not all"
    ):
        divide(monkeypatch, [["b"], ""])
    with pytest.raises(InputError, match="of the other"):
        divide(monkeypatch, [[], "a fault of the other"])


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ([1, "cpu"], None),
        ([4, "cpu"], "process 1 sees 4 cpu devices, process 0 sees 1 cpu device"),
        ([1, "tpu"], "process 1 sees 1 tpu device, process 0 sees 1 cpu device"),
    ],
)
def test_processes_that_see_other_devices(monkeypatch, other, said):
    """JAX would wait, or speak of an array that cannot be reshaped."""
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    state = mock.Mock(client=Store(other, "launch/devices/"), process_id=0)
    monkeypatch.setattr(joining.distributed, "global_state", state)
    with contextlib.nullcontext() if said is None else pytest.raises(InputError, match=said):
        joining.check_joined()


def test_processes_that_have_not_found_each_other(monkeypatch):
    joining.check_joined()
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(InputError, match=r"one of 4 processes .* add --coordinator=auto"):
        joining.check_joined()
    # The word of a user whose TPU host is a part of a slice does not make it one of its own.
    with pytest.raises(InputError, match="one of 4 processes"):
        job.run_together(values("--coordinator=none"), dict, lambda: pytest.fail("it ran"))
