"""When a process takes itself for one of several; several are in tests/multihost."""

import json
import tempfile

import jax
import pytest
from absl import flags

from launch.errors import InputError
from launch.runtime.devices import distributed


def values(*argv):
    found = flags.FlagValues()
    distributed.define_flags(found)
    found(["task", *argv])
    return found


@pytest.fixture
def joined(monkeypatch):
    calls = []
    monkeypatch.setattr(
        distributed.jax.distributed, "initialize", lambda *a, **k: calls.append((a, k))
    )
    return calls


STEP = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4"}


@pytest.mark.parametrize(
    ("argv", "environment", "expected"),
    [
        ([], {"HOME": "/"}, []),
        ([], {"SLURM_NTASKS": "4"}, []),  # in a batch script, outside of srun
        ([], STEP | {"SLURM_STEP_NUM_TASKS": "1"}, []),
        ([], STEP, [((), {})]),
        ([], {"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, [((), {})]),
        ([], {"TPU_WORKER_HOSTNAMES": "localhost"}, []),
        ([], {"TPU_WORKER_HOSTNAMES": "a,b"}, [((), {})]),
        ([], {"MEGASCALE_NUM_SLICES": "2"}, [((), {})]),
        (["--coordinator=auto"], {"HOME": "/"}, [((), {})]),
        (
            ["--coordinator=h:1", "--num_processes=2", "--process_id=0"],
            {"HOME": "/"},
            [(("h:1",), dict(num_processes=2, process_id=0))],
        ),
    ],
)
def test_who_is_joined(joined, argv, environment, expected):
    distributed.initialize(values(*argv), environment)
    assert joined == expected


def test_two_processes_with_one_number(joined, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    numbers = [
        values("--coordinator=h:1", "--num_processes=3", f"--process_id={n}") for n in (0, 1, 1)
    ]
    distributed.initialize(numbers[0], {})
    distributed.initialize(numbers[1], {})
    with pytest.raises(InputError, match=r"process_id=1: a process of the job at h:1 has this"):
        distributed.initialize(numbers[2], {})
    assert len(joined) == 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--num_processes=2"], "go with --coordinator"),
        (["--coordinator=auto", "--process_id=0"], "go with --coordinator"),
        (["--coordinator=h", "--num_processes=2", "--process_id=0"], "HOST:PORT of process 0 is"),
        (["--coordinator=h:1", "--num_processes=2"], "needs --num_processes and --process_id"),
        (["--coordinator=h:1", "--num_processes=2", "--process_id=2"], r"is not in 0 \.\. 1"),
    ],
)
def test_flags_that_do_not_fit(joined, argv, message):
    with pytest.raises(InputError, match=message):
        distributed.initialize(values(*argv), {"HOME": "/"})
    assert not joined


def test_processes_that_have_not_found_each_other(monkeypatch):
    distributed.check_joined()
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(InputError, match=r"one of 4 processes .* add --coordinator=auto"):
        distributed.check_joined()


def test_the_first_process_speaks_for_all():
    done = []
    distributed.on_first_process(lambda: done.append(1))
    assert done == [1]

    def wrong():
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        distributed.on_first_process(wrong)


def test_the_first_process_decides_for_all():
    assert distributed.decide_on_first_process(lambda: {"a": (1, None)}) == {"a": [1, None]}

    def wrong():
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        distributed.decide_on_first_process(wrong)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"config": {"seed": 1}, "the code": "1 a"}, "config.seed = 1, process 0 with 0"),
        ({"config": {"seed": 0}, "the code": "1 b"}, "the code = 1 b, process 0 with 1 a"),
        ({"config": {"seed": 0}}, "the code = nothing, process 0 with 1 a"),
    ],
)
def test_settings_of_several_processes(monkeypatch, other, said):
    own = {"config": {"seed": 0}, "the code": "1 a"}
    texts = [json.dumps(settings) for settings in (own, own, other)]
    monkeypatch.setattr(distributed, "gather_texts", lambda text: texts[:2])
    distributed.check_same(own)
    monkeypatch.setattr(distributed, "gather_texts", lambda text: texts)
    with pytest.raises(InputError, match=f"process 2 was started with {said}: start all"):
        distributed.check_same(own)
