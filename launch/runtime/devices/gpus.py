"""Which GPUs each process of a job uses: together all that they see, none of them twice."""

import ctypes
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

import jax

from launch.errors import InputError

_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")


def visible(environment: Mapping[str, str]) -> list[str]:
    """UUIDs of the GPUs (or MIG instances) that JAX would use, in CUDA's order.

    CUDA_VISIBLE_DEVICES and the cluster's control groups decide which exist, and
    JAX_LOCAL_DEVICE_IDS chooses among these; a wrong number there raises `InputError`.
    """
    uuids = _all_visible() if _uses_cuda() else []
    chosen = environment.get("JAX_LOCAL_DEVICE_IDS", "")
    if not (uuids and chosen):
        return uuids
    numbers = chosen.replace(" ", "").split(",")
    for number in numbers:
        if not number.isdecimal() or int(number) >= len(uuids):
            raise InputError(
                f"JAX_LOCAL_DEVICE_IDS={chosen}: each must be from 0 to {len(uuids) - 1}, "
                f"got {number!r}"
            )
    return [uuids[int(number)] for number in numbers]


def share(views: Sequence[Sequence[str]], own: int) -> list[str]:
    """The GPUs that process `own` uses, given what each process sees ([] on CPUs and TPUs).

    Raises `InputError`, on every process, if a GPU would be used twice or never, or only some
    processes see any.
    """
    # Processes that see the same GPUs divide them evenly, in order. A process that sees others than
    # all the rest, as when the cluster gives each its own, uses all that it sees.
    # 1. Group the processes by what they see.
    groups: dict[frozenset[str], list[int]] = {}
    for number, view in enumerate(views):
        groups.setdefault(frozenset(view), []).append(number)
    # 2. All or none must see GPUs.
    if frozenset() in groups and len(groups) > 1:
        blind, seeing = groups.pop(frozenset())[0], next(iter(groups.values()))[0]
        raise InputError(
            f"process {blind} of this job sees no GPU, process {seeing} sees "
            f"{len(views[seeing])}; give each its own, or set JAX_PLATFORMS=cpu for all"
        )
    # 3. The groups must not overlap, and their GPUs must divide evenly.
    owners: dict[str, int] = {}
    for uuids, numbers in groups.items():
        for uuid in uuids:
            if (other := owners.setdefault(uuid, numbers[0])) != numbers[0]:
                raise InputError(
                    f"processes {other} and {numbers[0]} of this job share some GPUs, but not all; "
                    "give each its own, or all GPUs of its host"
                )
        if len(uuids) % len(numbers):
            raise InputError(
                f"{len(numbers)} processes of this job see the same {_count(len(uuids))}, "
                "which cannot be divided evenly; start one process per host or per GPU"
            )
    # 4. Take this process's part of its group's GPUs.
    numbers = groups[frozenset(views[own])]
    count = len(views[own]) // len(numbers)
    first = numbers.index(own) * count
    return list(views[own][first : first + count])


def restrict(uuids: Sequence[str]) -> None:
    """Makes JAX use these GPUs only; call it before JAX initialises its devices."""
    if uuids:
        # JAX wants indices among the visible ones.
        everyone = _all_visible()
        numbers = ",".join(str(everyone.index(uuid)) for uuid in uuids)
        jax.config.update("jax_cuda_visible_devices", numbers)


def _count(number: int) -> str:
    return "GPU" if number == 1 else f"{number} GPUs"


def _uses_cuda() -> bool:
    # JAX would pick CUDA by itself if its plug-in is installed.
    platforms = jax.config.values["jax_platforms"] or "cuda"
    return bool({"cuda", "gpu"} & set(platforms.split(","))) and any(map(find_spec, _PLUGINS))


def _all_visible() -> list[str]:
    # From the CUDA driver. Asking it creates no context, so it takes no GPU memory.
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []  # JAX will report why
    uuids = []
    for number in range(count.value):
        device, uuid = ctypes.c_int(), (ctypes.c_ubyte * 16)()
        if driver.cuDeviceGet(ctypes.byref(device), number) or driver.cuDeviceGetUuid_v2(
            ctypes.byref(uuid), device
        ):
            return []
        uuids.append(bytes(uuid).hex())
    return uuids
