"""Prints what to put in a bug report: versions of the project and its packages, and the devices.

python -m launch.versions
python -m launch.versions --nodevices
python -m launch.versions --coordinator=none
"""

import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata

from absl import flags

from launch.cli import exit_code, parse_flags
from launch.code_version import code_version

PACKAGES = (
    "jax",
    "jaxlib",
    "libtpu",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "array_record",
    "tensorflow-datasets",
    "ml_collections",
    "numpy",
    "opencv-python-headless",
    "safetensors",
    "transformers",
)
# Environment variables that decide which devices there are and how programs are compiled.
_VARIABLES = ("JAX_", "XLA_", "TPU_", "CUDA_VISIBLE", "LIBTPU_", "NPROC")


def define_flags(values: flags.FlagValues) -> None:
    """Adds the flags of this command."""
    flags.DEFINE_bool(
        "devices",
        True,
        "also start JAX and list its devices; --nodevices is faster",
        flag_values=values,
    )


def versions(devices: bool = True) -> dict[str, str]:
    """What a report should contain, by name, in the order of printing.

    With `devices` it starts JAX; no other process may use a TPU of this host meanwhile.
    """
    found = {
        "imagen-ft": code_version(),
        "python": platform.python_version(),
        "system": f"{platform.platform()}, {os.cpu_count()} CPUs",
        **{name: _version(name) for name in PACKAGES},
        **{name: os.environ[name] for name in sorted(os.environ) if name.startswith(_VARIABLES)},
    }
    return found | {"devices": _devices()} if devices else found


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> str:
    """Number and kind of the devices of all hosts, or JAX's reason why there are none."""
    import jax  # Takes a second, which --help can save.

    try:
        kinds = [device.device_kind for device in jax.devices()]
    except RuntimeError as error:
        return " ".join(str(error).split())
    return ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))


def main(argv: Sequence[str]) -> None:
    """Prints one line per name; raises `InputError` for wrong flags."""
    values = parse_flags(argv, __doc__ or "", define_flags)
    if values is not None:
        for name, value in versions(values.devices).items():
            print(f"{name}: {value}")


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns an exit code as in `launch.cli`."""
    argv = list(sys.argv if argv is None else argv)
    return exit_code(lambda: main(argv), "nothing was changed")


if __name__ == "__main__":
    sys.exit(run())
