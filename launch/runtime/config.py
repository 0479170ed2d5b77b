"""What tasks do with configs besides reading them."""

import json
import os
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import ml_collections
from absl import flags
from ml_collections import config_flags

from launch.errors import InputError


def plain(value: Any) -> Any:
    """A config's value as JSON gives it back: tuples are lists."""
    return json.loads(ml_collections.ConfigDict({"value": value}).to_json())["value"]


def module_fields(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """A config as the fields of a Flax module: hashable sequences, a dtype for its name."""
    fields = {
        name: tuple(value) if isinstance(value, list | tuple) else value
        for name, value in config.items()
    }
    return {**fields, "dtype": jnp.dtype(fields.get("dtype", "float32"))}


def check_overrides(argv: Sequence[str]) -> None:
    """Names the field that does not exist; config_flags would only say 'q'."""
    files = [arg.partition("=")[2] for arg in argv if arg.startswith("--config=")]
    if len(files) != 1:
        raise InputError("--config is missing or doubled: name one file, --config=configs/X/Y.py")
    config = load_config(files[0])
    for arg in argv:
        if not arg.startswith("--config."):
            continue
        node: Any = config
        for field in arg.partition("=")[0].removeprefix("--config.").split("."):
            if not isinstance(node, ml_collections.ConfigDict) or field not in node:
                fields = (
                    ", ".join(node) if isinstance(node, ml_collections.ConfigDict) else "nothing"
                )
                raise InputError(f"{arg}: there is no config field {field!r} (there is: {fields})")
            node = node[field]


def load_config(argument: str) -> ml_collections.ConfigDict:
    """The config of `FILE.py[:arguments]`.

    Raises:
        InputError: no such file, or it is no config, or the arguments are wrong.
    """
    path = argument.partition(":")[0]
    if not os.path.isfile(path):
        raise InputError(f"--config={argument}: there is no file {path}")
    with open(path, encoding="utf-8", errors="replace") as file:
        if "get_config" not in file.read():
            raise InputError(f"--config={argument}: {path} has no get_config; name an experiment")
    values = flags.FlagValues()
    argv = ["task", f"--config={argument}"]
    config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=argv)
    try:
        values(argv)
        return values.config
    except (flags.Error, OSError, ValueError, KeyError) as error:
        # absl wraps the reason in a traceback; it is the last line.
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"--config={argument}: {reason}") from error
