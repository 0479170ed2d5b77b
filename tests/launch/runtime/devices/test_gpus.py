"""Which GPUs a process uses, and how the driver is asked for them."""

import ctypes

import jax
import pytest

from launch.errors import InputError
from launch.runtime.devices import gpus

EIGHT = [f"gpu-{n}" for n in range(8)]
OTHERS = [f"other-{n}" for n in range(8)]
SHARES = {
    "no GPU at all": ([[], []], [[], []]),
    "a process a host": ([EIGHT, OTHERS], [EIGHT, OTHERS]),
    "a process for each GPU of two": ([EIGHT[:2]] * 2, [["gpu-0"], ["gpu-1"]]),
    "two hosts": ([EIGHT[:2]] * 2 + [OTHERS[:2]] * 2, [[g] for g in EIGHT[:2] + OTHERS[:2]]),
    "two for each process": ([EIGHT[:4]] * 2, [EIGHT[:2], EIGHT[2:4]]),
    "processes of two hosts in turn": ([EIGHT[:2], OTHERS[:2]] * 2, [[EIGHT[0]], [OTHERS[0]]]),
    "each its own": ([[gpu] for gpu in EIGHT], [[gpu] for gpu in EIGHT]),
    "each four of its own": ([EIGHT[:4], EIGHT[4:]], [EIGHT[:4], EIGHT[4:]]),
    "some share": ([EIGHT[:1], OTHERS[:2], OTHERS[:2]], [["gpu-0"], ["other-0"], ["other-1"]]),
}


@pytest.mark.parametrize(("views", "expected"), SHARES.values(), ids=SHARES)
def test_all_gpus_are_used_once(views, expected):
    shares = [gpus.share(views, own) for own in range(len(views))]
    assert shares[: len(expected)] == expected
    used = [uuid for share in shares for uuid in share]
    assert sorted(used) == sorted({uuid for view in views for uuid in view})


REFUSED = {
    "eight for three": ([EIGHT] * 3, "3 processes of this job see the same 8 GPUs, which cannot"),
    "one for two": ([EIGHT[:1]] * 2, "2 processes of this job see the same GPU, which cannot"),
    "none for one": ([EIGHT, []], "process 1 of this job sees no GPU, process 0 sees 8"),
    "in part the same": (
        [OTHERS, EIGHT[:4], EIGHT[2:6]],
        "processes 1 and 2 of this job share some GPUs",
    ),
}


@pytest.mark.parametrize(("views", "said"), REFUSED.values(), ids=REFUSED)
def test_gpus_used_twice_or_never(views, said):
    for own in range(len(views)):
        with pytest.raises(InputError) as raised:
            gpus.share(views, own)
        assert said in str(raised.value)


class Driver:
    """Answers as libcuda does: 0 is success, 100 is no device."""

    def __init__(self, count):
        self.count = count

    def cuInit(self, flags):
        return 0 if self.count else 100

    def cuDeviceGetCount(self, count):
        count._obj.value = self.count
        return 0

    def cuDeviceGet(self, device, number):
        device._obj.value = number
        return 0

    def cuDeviceGetUuid_v2(self, uuid, device):
        uuid._obj[:] = bytes([device.value] * 16)
        return 0


@pytest.fixture
def driver(monkeypatch):
    def install(count, platforms=None):
        monkeypatch.setattr(gpus, "find_spec", lambda name: name == "jax_cuda12_plugin" or None)
        monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(count))
        monkeypatch.setattr(gpus.jax, "config", Config(platforms))
        return gpus.jax.config

    return install


class Config:
    """JAX's, of which nothing is to be changed here."""

    def __init__(self, platforms):
        self.values, self.updates = {"jax_platforms": platforms}, {}

    def update(self, name, value):
        self.updates[name] = value


def test_the_driver_is_asked(driver):
    config = driver(4)
    uuids = gpus.visible({})
    assert uuids == [f"{n:02d}" * 16 for n in range(4)]
    assert gpus.visible({"JAX_LOCAL_DEVICE_IDS": "3, 1"}) == [uuids[3], uuids[1]]
    for wrong in ("4", "1,x", "-1", "1,"):
        with pytest.raises(
            InputError, match=rf"JAX_LOCAL_DEVICE_IDS={wrong}: each must be from 0 to 3"
        ):
            gpus.visible({"JAX_LOCAL_DEVICE_IDS": wrong})
    gpus.restrict(uuids[2:])
    assert config.updates == {"jax_cuda_visible_devices": "2,3"}


@pytest.mark.parametrize(
    ("count", "platforms", "expected"),
    [(0, None, 0), (2, "cpu", 0), (2, "tpu,cpu", 0), (2, "cuda,cpu", 2), (2, "gpu", 2)],
)
def test_where_none_is_used(driver, count, platforms, expected):
    driver(count, platforms)
    assert len(gpus.visible({})) == expected


def test_without_a_driver_or_plugin(monkeypatch):
    assert gpus.visible({}) == []  # The tests' JAX_PLATFORMS is cpu.
    monkeypatch.setattr(ctypes, "CDLL", lambda name: ctypes.cdll.LoadLibrary("no-such-library.so"))
    assert gpus._all_visible() == []
    gpus.restrict([])
    assert jax.config.values["jax_cuda_visible_devices"] == "all"
