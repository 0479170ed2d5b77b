"""Loading and checking configs."""

import contextlib
import json
import os
import sys
import traceback
import types
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_collections

from launch.errors import InputError

# The types that networks compute in.
_DTYPES = ("float32", "bfloat16", "float16")

# The folder that holds the packages of the project: a checkout, or site-packages.
_HOME = Path(__file__).resolve().parents[2]


def plain(value: Any) -> Any:
    """A config's value after a round trip through JSON: tuples become lists."""
    return json.loads(ml_collections.ConfigDict({"value": value}).to_json())["value"]


def module_fields(config: ml_collections.ConfigDict, field: str) -> dict[str, Any]:
    """A config as the fields of a Flax module: tuples for lists, a dtype for its name.

    `field` names the config in messages. Raises `InputError` if `dtype` is not one to compute in.
    """
    # Flax modules are hashed as static arguments of jit, which lists cannot be.
    fields = {
        name: tuple(value) if isinstance(value, list | tuple) else value
        for name, value in config.items()
    }
    name = fields.get("dtype", "float32")
    if name not in _DTYPES:
        raise InputError(f"{field}.dtype must be a type such as float32 or bfloat16, got {name}")
    return {**fields, "dtype": jnp.dtype(name)}


@contextlib.contextmanager
def reading(config: ml_collections.ConfigDict) -> Iterator[None]:
    """Turns a field that the block misses in the config into an `InputError` that names it."""
    try:
        yield
    except AttributeError as error:
        # ConfigDict raises AttributeError with the section as `obj`; other objects are bugs.
        if not isinstance(error.obj, ml_collections.ConfigDict):
            raise
        place = _path_to(error.obj, config)
        field = ".".join(["config", *(place or []), str(error.name)])
        raise InputError(
            f"{field} is missing, and this task needs it; add it, or use a config of this task"
        ) from error


def _path_to(node: Any, config: ml_collections.ConfigDict) -> list[str] | None:
    # By identity: equal sections may occur twice.
    if node is config:
        return []
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            inner = _path_to(node, value)
            if inner is not None:
                return [name, *inner]
    return None


def check_overrides(
    argv: Sequence[str], config: ml_collections.ConfigDict, lacked: Collection[str] = ()
) -> None:
    """Raises `InputError` on `--config.x=...` if there is no field x, or x is a missing section.

    `lacked` are dotted paths of absent fields that can be set.
    """
    # config_flags would only say "q".
    for arg in argv:
        if not arg.startswith("--config."):
            continue
        path = arg.partition("=")[0].removeprefix("--config.")
        # Walk down the path; below a section that is absent only `lacked` knows the fields.
        names, node = path.split("."), config
        for depth, name in enumerate(names):
            fields = _fields_of(node, ".".join(names[:depth]), lacked)
            if name not in fields:
                there = ", ".join(fields) or "nothing"
                raise InputError(f"{arg}: the config has no field {name!r}; use one of {there}")
            node = node.get(name) if isinstance(node, ml_collections.ConfigDict) else None
        # The path itself may name an absent section instead of a field.
        fields = _fields_of(None, path, lacked)
        if node is None and fields:
            raise InputError(
                f"{arg}: this field is a group; set one of its fields: {', '.join(fields)}"
            )


def _fields_of(node: Any, path: str, lacked: Collection[str]) -> list[str]:
    """The names in a section, and those below `path` that it lacks and that can be set."""
    names = list(node) if isinstance(node, ml_collections.ConfigDict) else []
    start = f"{path}." if path else ""
    others = {x.removeprefix(start).partition(".")[0] for x in lacked if x.startswith(start)}
    return [*names, *sorted(others.difference(names))]


def load_config(argument: str) -> ml_collections.ConfigDict:
    """Runs `get_config` of `FILE.py[:arguments]`; raises `InputError` if that is not possible.

    A relative path that does not exist here is taken from the project's folder, so `configs/...`
    works from any folder and for an installed package.
    """
    # 1. Find the file.
    path, colon, given = argument.partition(":")
    installed = os.path.join(_HOME, path)
    if not os.path.isfile(path) and os.path.isfile(installed):
        path = installed
    if not os.path.isfile(path):
        hint = (
            "; what follows a ':' is an argument of the config, not part of the path"
            if colon
            else ""
        )
        raise InputError(f"--config={argument}: no such file: {path}{hint}")
    # 2. Read it; the check spares a wrong file, such as a script, from being executed.
    with open(path, "rb") as file:
        text = file.read()
    if b"get_config" not in text:
        raise InputError(f"--config={argument}: {path} has no get_config; use a config file")
    # 3. Execute it as a module of its own, not through the import system: its folder need not be a
    # package, and two configs may share a name.
    module = types.ModuleType("experiment")
    module.__file__ = path
    sys.modules[module.__name__] = module  # dataclasses look up their module there
    try:
        exec(compile(text, path, "exec"), module.__dict__)
        config = module.get_config(*([given] if colon else []))
    except (Exception, SystemExit) as error:
        raise InputError(f"--config={argument}: {_reason(error, path)}") from error
    # 4. Check the result.
    if not isinstance(config, ml_collections.ConfigDict):
        raise InputError(
            f"--config={argument}: get_config must return a ConfigDict, got {type(config).__name__}"
        )
    _expand_home(config)
    return config


def _expand_home(config: ml_collections.ConfigDict) -> None:
    with config.unlocked():
        for name, value in config.items():
            expanded = _expanded(value)
            if expanded is not value:
                config[name] = expanded


def _expanded(value: Any) -> Any:
    """The expanded value, or the same object where there is nothing to expand."""
    if isinstance(value, ml_collections.ConfigDict):
        _expand_home(value)
    elif isinstance(value, str) and value.startswith("~/"):
        return os.path.expanduser(value)
    elif isinstance(value, dict):
        items = {name: _expanded(item) for name, item in value.items()}
        return items if any(items[name] is not value[name] for name in items) else value
    elif isinstance(value, list | tuple):
        values = [_expanded(item) for item in value]
        if any(a is not b for a, b in zip(values, value, strict=True)):
            return type(value)(values)
    return value


def _reason(error: BaseException, path: str) -> str:
    if isinstance(error, SyntaxError) and error.lineno:
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == path]
    location = f" ({path}, line {lines[-1]})" if lines else ""
    text = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
    return f"{text}{location}"
