"""The Google Cloud project and zone: from flags, the environment or gcloud's configuration."""

import os

from absl import flags

from launch.errors import InputError
from launch.submit.plan import Command, run

FLAGS_TITLE = "Google Cloud"  # in --help
_VARIABLES = {"project": "CLOUDSDK_CORE_PROJECT", "zone": "CLOUDSDK_COMPUTE_ZONE"}
_PROPERTIES = {"project": "core/project", "zone": "compute/zone"}


def define_flags(values: flags.FlagValues) -> None:
    """Defines where machines are and how they are paid for."""
    for name in _VARIABLES:
        flags.DEFINE_string(
            name,
            "",
            f"of Google Cloud; by default {_VARIABLES[name]}, or as `gcloud config` says",
            flag_values=values,
        )
    flags.DEFINE_bool(
        "spot", False, "cheaper machines, which may be taken away at any time", flag_values=values
    )


def setting(name: str, flag: str) -> str:
    """The project or zone: the flag's value, else the environment's, else gcloud's.

    Raises `InputError` if none of them names one.
    """
    value = flag or os.environ.get(_VARIABLES[name], "")
    if not value:
        command = Command(("gcloud", "config", "get-value", _PROPERTIES[name]))
        value = run(command).strip()
    # Older versions of gcloud print this in place of a value.
    if value in ("", "(unset)"):
        raise InputError(
            f"--{name} is missing; pass it, or run gcloud config set {_PROPERTIES[name]} VALUE"
        )
    return value
