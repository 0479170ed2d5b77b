"""Accelerators by name, with their makers' figures."""

import dataclasses
import re

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
    """A row of the table, from the makers' data sheets (docs.cloud.google.com/tpu/docs)."""

    name: str
    kinds: tuple[str, ...]  # beginnings of `jax.Device.device_kind`
    peak_flops: float  # dense bfloat16 FLOP/s
    hbm_bytes: int
    link_bandwidth: float  # bytes/s that a chip sends to its neighbours, over all links
    slice_size: int  # most chips that these links join: in a TPU slice, in a GPU host
    # Bytes/s that a chip sends beyond the links. Google gives none for v4; v5p's is used.
    network_bandwidth: float
    host_chips: int
    # Hardware threads of a host of the machine types ct4p-hightpu-4t, ct5lp-hightpu-4t,
    # ct5p-hightpu-4t, ct6e-standard-4t (cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus)
    # and a2-highgpu-8g, a3-highgpu-8g, a3-ultragpu-8g (docs.cloud.google.com/compute/docs/gpus).
    host_cpus: int


GIB = 2**30
# Name, kinds, FLOP/s, HBM, links, slice, network, chips and CPUs of a host.
CHIPS = (
    Chip("v4", ("TPU v4",), 275e12, 32 * GIB, 300e9, 4096, 6.25e9, 4, 240),
    Chip("v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 16 * GIB, 200e9, 256, 3.125e9, 4, 112),
    Chip("v5p", ("TPU v5p", "TPU v5"), 459e12, 95 * GIB, 600e9, 6144, 6.25e9, 4, 208),
    Chip("v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 32 * GIB, 448e9, 256, 12.5e9, 4, 180),
    Chip("A100", ("NVIDIA A100",), 312e12, 80 * GIB, 300e9, 8, 25e9, 8, 96),
    Chip("H100", ("NVIDIA H100",), 989e12, 80 * GIB, 450e9, 8, 50e9, 8, 208),
    Chip("H200", ("NVIDIA H200",), 989e12, 141 * 10**9, 450e9, 8, 50e9, 8, 224),
)


def fed_seconds(cpu_seconds: float, chip: Chip, chips: int) -> float:
    """Seconds in which all CPUs of the hosts of `chips` chips do `cpu_seconds` of work."""
    return cpu_seconds / (-(-chips // chip.host_chips) * chip.host_cpus)


def architecture(device: jax.Device) -> str:
    """What programs are compiled for; devices that differ only in memory have the same."""
    capability = getattr(device, "compute_capability", None)  # only GPUs have one
    return f"{device.platform} {capability}" if capability else device.device_kind


def cuda_capability(device: jax.Device) -> tuple[int, int] | None:
    """Compute capability of an NVIDIA GPU, such as (7, 5); None for any other device."""
    # AMD's GPUs belong to platform 'gpu' too; there it is an architecture such as 'gfx942'.
    match = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(device, "compute_capability", "")))
    return (int(match[1]), int(match[2])) if match else None


def half_dtype(device: jax.Device) -> str:
    """The half precision a device is fast in: NVIDIA GPUs before Ampere lack bfloat16."""
    capability = cuda_capability(device)
    return "float16" if capability is not None and capability < (8, 0) else "bfloat16"


def chip_of(device: jax.Device) -> Chip | None:
    """The table's row for a device; None if it has none, as a CPU."""
    for chip in CHIPS:
        if device.device_kind.startswith(chip.kinds):
            return chip
    return None
