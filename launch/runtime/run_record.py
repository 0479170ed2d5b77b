"""The record of a run, `config.json` and `inputs.json`, each with its own checksum.

Together they name the run. The seal of every checkpoint carries that name, so neither a changed
record nor a checkpoint of another run passes.
"""

from collections.abc import Mapping
from typing import Any

from etils import epath

from launch.fields import Fields
from launch.files import json_digest, read_sealed, write_sealed

CONFIG, INPUTS = "config.json", "inputs.json"
# Hexadecimal digits of a run's name: 64 bits.
_DIGITS = 16


def write_record(folder: epath.Path, config: Fields, inputs: Mapping[str, str]) -> str:
    """Writes both files and returns the run's name. `inputs` are checksums by name."""
    # The config goes last: where it exists, the record is complete.
    write_sealed(folder / INPUTS, dict(inputs))
    write_sealed(folder / CONFIG, dict(config))
    return _name(config, inputs)


def read_record(folder: epath.Path) -> tuple[dict[str, Any], dict[str, str], str]:
    """The config, the inputs and the run's name; `InputError` if a file is missing or damaged."""
    config, inputs = read_sealed(folder / CONFIG), read_sealed(folder / INPUTS)
    return config, inputs, _name(config, inputs)


def seed_name(run_name: str, folder: str) -> str:
    """The name in the checkpoints of one seed, whose `folder` is in the run directory."""
    return f"{run_name}/{folder}"


def _name(config: Fields, inputs: Mapping[str, str]) -> str:
    return json_digest({"config": dict(config), "inputs": dict(inputs)})[:_DIGITS]
