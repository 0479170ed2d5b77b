"""What a run directory says of its run: `config.json` and `inputs.json`, each with its own digest.

Together they name the run. Every checkpoint carries that name in its seal, so that neither a
changed record nor a checkpoint of another run passes.
"""

from collections.abc import Mapping
from typing import Any

from etils import epath

from launch.fields import Fields
from launch.files import json_digest, read_sealed, write_sealed

CONFIG, INPUTS = "config.json", "inputs.json"
_DIGITS = 16


def write_record(folder: epath.Path, config: Fields, inputs: Mapping[str, str]) -> str:
    """Writes both files, the config last.

    Args:
        folder: the run directory, which exists.
        config: what JSON can say of it.
        inputs: digests of what the run is made from, by name.

    Returns:
        The run's name, see `read_record`.
    """
    write_sealed(folder / INPUTS, dict(inputs))
    write_sealed(folder / CONFIG, dict(config))
    return _name(config, inputs)


def read_record(folder: epath.Path) -> tuple[dict[str, Any], dict[str, str], str]:
    """The config, the inputs, and the run's name: 16 hexadecimal digits.

    Raises:
        InputError: a file is missing or damaged.
    """
    config, inputs = read_sealed(folder / CONFIG), read_sealed(folder / INPUTS)
    return config, inputs, _name(config, inputs)


def seed_name(run_name: str, folder: str) -> str:
    """The name that the checkpoints of one of a run's seeds carry.

    Args:
        run_name: of the run.
        folder: of the seed, in the run directory.
    """
    return f"{run_name}/{folder}"


def _name(config: Fields, inputs: Mapping[str, str]) -> str:
    return json_digest({"config": dict(config), "inputs": dict(inputs)})[:_DIGITS]
