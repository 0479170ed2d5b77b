"""Fields that a config may lack: a command line can set them, and a dry run shows them.

A config stays as it is until one of them is set to another value than its default: runs that were
made before go on.
"""

import contextlib
import copy
import dataclasses
import shlex
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import flags
from ml_collections import config_dict, config_flags

from launch.fields import Fields
from launch.runtime.config import reading

# By dotted path the default of a field; `unset(type)` stands for None.
Defaults = dict[str, Any]
# Of a task: what a config of it may have and lacks.
Lacking = Callable[[ml_collections.ConfigDict], Defaults]
_FLAG = "--config."
_OF_FLAX = ("parent", "name")
_SIMPLE = (bool, int, float, str, tuple)

unset = config_dict.placeholder


@dataclasses.dataclass(frozen=True)
class Added:
    """What was added to a config.

    Attributes:
        defaults: the fields.
        sections: that had to be made for them, dotted; the outer one before the inner one.
    """

    defaults: Defaults = dataclasses.field(default_factory=dict)
    sections: list[str] = dataclasses.field(default_factory=list)


def below(path: str, section: Fields, defaults: Mapping[str, Any]) -> Defaults:
    """Those of `defaults`, by name, that a section lacks; by their path.

    Args:
        path: dotted, of the section; '' is the config itself.
        section: of the config.
        defaults: of all that the section may have.
    """
    prefix = f"{path}." if path else ""
    return {f"{prefix}{name}": x for name, x in defaults.items() if name not in section}


def defaults_of(instance: Any, leave_out: Sequence[str] = ()) -> dict[str, Any]:
    """Fields of a dataclass as the config that made it would have them, by name."""
    defaults = {}
    for field in dataclasses.fields(instance):
        if field.name in (*_OF_FLAX, *leave_out) or not field.init:
            continue
        value = getattr(instance, field.name)
        if field.name == "dtype":
            value = jnp.dtype(value).name
        elif value is None:
            value = _unset(field.type)
        if isinstance(value, (*_SIMPLE, config_dict.FieldReference)):
            defaults[field.name] = value
    return defaults


def _unset(annotation: Any) -> Any:
    """What stands for None of one type or another; None where no simple type is among them."""
    if not isinstance(annotation, types.UnionType):
        return None
    kinds = [kind for kind in typing.get_args(annotation) if kind in _SIMPLE]
    return unset(kinds[0]) if kinds else None


def add_named(argv: Sequence[str], config: ml_collections.ConfigDict, lacking: Lacking) -> Added:
    """Adds the fields that a command line sets and a config lacks, with their defaults.

    Args:
        argv: the arguments.
        config: unlocked; it is changed.
        lacking: of the task. It is asked about the config with the other fields of `argv` set.

    Raises:
        InputError: the config is none of this task.
    """
    named = {
        arg: arg.partition("=")[0].removeprefix(_FLAG) for arg in argv if arg.startswith(_FLAG)
    }
    lacked = [path for path in named.values() if not has(config, path)]
    if not lacked:
        return Added()
    known = [arg for arg, path in named.items() if path not in lacked]
    overridden = _overridden([argv[0], *known], copy.deepcopy(config))
    with reading(overridden):
        defaults = lacking(overridden)
    added = Added({path: defaults[path] for path in lacked if path in defaults})
    for path, default in added.defaults.items():
        *parents, name = path.split(".")
        section = config
        for depth, parent in enumerate(parents, start=1):
            if section.get(parent) is None:
                section[parent] = {}
                added.sections.append(".".join(parents[:depth]))
            section = section[parent]
        # A reference is of one field: what is set through it, all would have that share it.
        section[name] = unset(default.get_type()) if _is_unset(default) else default
    return added


def remove_defaults(config: ml_collections.ConfigDict, added: Added) -> None:
    """Takes those fields out again that were set to what holds without them."""
    with config.unlocked():
        for path, default in added.defaults.items():
            section, name = _section_of(config, path)
            value = section[name]
            if value is _plain(default) or np.array_equal(value, _plain(default)):
                del section[name]
        for path in reversed(added.sections):
            section, name = _section_of(config, path)
            if not section[name]:
                del section[name]


def text(defaults: Defaults) -> str:
    """The arguments that would set fields to their defaults, one a line; None for `unset`."""
    lines = ["fields that this config lacks, with what holds without them:"]
    for path, default in sorted(defaults.items()):
        lines.append("  " + shlex.quote(f"{_FLAG}{path}={_plain(default)}"))
    return "\n".join(lines)


def _is_unset(default: Any) -> bool:
    return isinstance(default, config_dict.FieldReference)


def _plain(default: Any) -> Any:
    return default.get() if _is_unset(default) else default


def _section_of(config: ml_collections.ConfigDict, path: str) -> tuple[Any, str]:
    *parents, name = path.split(".")
    section: Any = config
    for parent in parents:
        section = section[parent]
    return section, name


def has(config: ml_collections.ConfigDict, path: str) -> bool:
    """Whether a config has the field of a dotted path."""
    section: Any = config
    for name in path.split("."):
        if not isinstance(section, ml_collections.ConfigDict) or name not in section:
            return False
        section = section[name]
    return True


def _overridden(
    argv: Sequence[str], config: ml_collections.ConfigDict
) -> ml_collections.ConfigDict:
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=list(argv))
    # Whoever reads the command line says what is wrong with it.
    with contextlib.suppress(flags.Error):
        values(argv)
    return config
