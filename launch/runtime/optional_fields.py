"""Fields that a config may lack: a command line can set them, and a dry run shows them.

A config stays as it is until one of them is set to another value than its default: runs that were
made before go on.
"""

import ast
import contextlib
import copy
import dataclasses
import shlex
import types
import typing
from collections import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import flags
from ml_collections import config_dict, config_flags

from launch.errors import InputError
from launch.fields import Fields
from launch.runtime.config import check_overrides, reading

# By dotted path the default of a field; `unset(type)` stands for None. What may be of several types
# is `Mixed`, and is told of where a config has it as well: that has one of the types.
Defaults = dict[str, Any]
# Of a task: what a config of it may have and lacks.
Lacking = Callable[[ml_collections.ConfigDict], Defaults]
_FLAG = "--config."
_OF_FLAX = ("parent", "name")
_SIMPLE = (bool, int, float, str, tuple)

unset = config_dict.placeholder


@dataclasses.dataclass(frozen=True)
class Mixed:
    """The default of a field that may be of several types.

    Attributes:
        value: the default.
        kinds: the types, of which one is a number, a text or a tuple each.
    """

    value: Any
    kinds: tuple[type, ...]


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
    """Those of `defaults`, by name, that a section lacks, and mixed ones; by their path.

    Args:
        path: dotted, of the section; '' is the config itself.
        section: of the config.
        defaults: of all that the section may have.
    """
    return within(
        path,
        {
            name: default
            for name, default in defaults.items()
            if name not in section or isinstance(default, Mixed)
        },
    )


def within(path: str, defaults: Defaults) -> Defaults:
    """Defaults of a section by their paths in what holds it at `path`; '' holds nothing else."""
    return {f"{path}.{name}" if path else name: default for name, default in defaults.items()}


def defaults_of(instance: Any, leave_out: Sequence[str] = ()) -> dict[str, Any]:
    """Fields of a dataclass as the config that made it would have them, by name."""
    defaults = {}
    for field in dataclasses.fields(instance):
        if field.name in (*_OF_FLAX, *leave_out) or not field.init:
            continue
        value, kinds = getattr(instance, field.name), _kinds(field.type)
        if field.name == "dtype":
            value = jnp.dtype(value).name
        elif value is None:
            value = unset(kinds[0]) if kinds else None
        if isinstance(value, (*_SIMPLE, config_dict.FieldReference)):
            defaults[field.name] = Mixed(value, kinds) if len(kinds) > 1 else value
    return defaults


def _kinds(annotation: Any) -> tuple[type, ...]:
    """The simple types of a union; sequences are tuples in a config."""
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return ()
    parts = typing.get_args(annotation)
    kinds = [tuple if typing.get_origin(kind) is abc.Sequence else kind for kind in parts]
    return tuple(kind for kind in kinds if kind in _SIMPLE)


def add_named(argv: Sequence[str], config: ml_collections.ConfigDict, lacking: Lacking) -> Added:
    """Adds the fields that a command line sets and a config lacks, with their defaults.

    A field that may be of several types gets the one that the command line has.

    Args:
        argv: the arguments.
        config: unlocked; it is changed.
        lacking: of the task. It is asked about the config with the other fields of `argv` set, and
            again when fields were added: a source's depend on its name.

    Raises:
        InputError: the config is none of this task; a section that it lacks needs a name first; or
            there is no such field.
    """
    named = [(arg, arg.removeprefix(_FLAG)) for arg in argv if arg.startswith(_FLAG)]
    waiting = {
        path: text
        for path, _, text in (override.partition("=") for _, override in named)
        if not _takes(config, path, text)
    }
    added = Added()
    while waiting:
        others = [arg for arg, override in named if override.partition("=")[0] not in waiting]
        overridden = _overridden([argv[0], *others], copy.deepcopy(config))
        with reading(overridden):
            defaults = lacking(overridden)
        ready = [path for path in waiting if path in defaults]
        if not ready:
            _check_named(tuple(waiting), defaults)
            left = [f"{_FLAG}{path}={text}" for path, text in waiting.items()]
            check_overrides(left, overridden, defaults)
            break
        for path in ready:
            _add(config, path, defaults[path], waiting.pop(path), added)
    return added


def _check_named(paths: Sequence[str], defaults: Defaults) -> None:
    """Looks for fields of a section that has no name yet, which decides what fields there are."""
    for path in paths:
        section = path.rpartition(".")[0]
        if f"{section}.name" in defaults:
            raise InputError(
                f"{_FLAG}{section}.name must be set as well, got {_FLAG}{path} alone; the "
                "name decides which fields there are"
            )


def _takes(config: ml_collections.ConfigDict, path: str, text: str) -> bool:
    """Whether a config has a field, and of the type that a text is of."""
    if not has(config, path):
        return False
    section, name = _section_of(config, path)
    forms = {_form(type(value)) for value in (section[name], _literal(text)) if value is not None}
    return len(forms) < 2


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (MemoryError, RecursionError, SyntaxError, TypeError, ValueError):
        return text


def _form(kind: type) -> type:
    """What types are told apart by: numbers and flags, sequences, texts."""
    if issubclass(kind, bool | int | float):
        return float
    return tuple if issubclass(kind, list | tuple) else kind


def _add(
    config: ml_collections.ConfigDict, path: str, default: Any, text: str, added: Added
) -> None:
    """Adds one field, of the type that it is to have, and the sections around it."""
    *parents, name = path.split(".")
    section = config
    for depth, parent in enumerate(parents, start=1):
        if section.get(parent) is None:
            section[parent] = {}
            added.sections.append(".".join(parents[:depth]))
        section = section[parent]
    if name in section:
        del section[name]
    else:
        added.defaults[path] = default
    if isinstance(default, Mixed):
        form = _form(type(_literal(text)))
        fitting = [kind for kind in default.kinds if _form(kind) is form]
        default = unset(fitting[0]) if fitting else default.value
    # A reference is of one field: what is set through it, all would have that share it.
    section[name] = unset(default.get_type()) if _is_unset(default) else default


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


def text(defaults: Defaults, config: ml_collections.ConfigDict) -> str:
    """The arguments that would set fields to their defaults, one a line; None for `unset`.

    Args:
        defaults: of fields.
        config: those that it has are left out.
    """
    lines = ["optional fields that this config leaves out, with their defaults:"]
    for path, default in sorted(defaults.items()):
        if not has(config, path):
            lines.append("  " + shlex.quote(f"{_FLAG}{path}={_plain(default)}"))
    return "\n".join(lines)


def _is_unset(default: Any) -> bool:
    return isinstance(default, config_dict.FieldReference)


def _plain(default: Any) -> Any:
    if isinstance(default, Mixed):
        return _plain(default.value)
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
