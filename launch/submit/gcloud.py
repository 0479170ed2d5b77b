"""Whose project, and where: from flags, the environment or the configuration of gcloud."""

import os

from absl import flags

from launch.errors import InputError
from launch.submit.plan import Command, run

FLAGS_TITLE = "Google Cloud"  # in --help
_VARIABLES = {"project": "CLOUDSDK_CORE_PROJECT", "zone": "CLOUDSDK_COMPUTE_ZONE"}
_PROPERTIES = {"project": "core/project", "zone": "compute/zone"}


def define_flags(values: flags.FlagValues) -> None:
    """Flags of the place, and of how machines are paid for."""
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
    """A setting: the flag's value, else the environment's, else that of gcloud.

    Args:
        name: project or zone.
        flag: its flag's value.

    Raises:
        InputError: nobody says it.
    """
    value = flag or os.environ.get(_VARIABLES[name], "")
    if not value:
        command = Command(("gcloud", "config", "get-value", _PROPERTIES[name]))
        value = run(command).strip()
    # Older versions print it where a value would stand.
    if value in ("", "(unset)"):
        raise InputError(
            f"--{name} is missing; pass it, or run gcloud config set {_PROPERTIES[name]} VALUE"
        )
    return value
