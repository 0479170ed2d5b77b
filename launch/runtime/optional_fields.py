"""Fields that a config may lack: a command line can set them, and a dry run shows them.

A config does not change until a field is set to something other than its default. So a new field
does not break the resuming of older runs, whose recorded configs lack it.
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

# Defaults by dotted path; `unset(type)` stands for None with a type. A field of several types is
# `Mixed`, and is listed even if the config has it, as its value shows one of the types only.
Defaults = dict[str, Any]
# Given a config of a task: the fields that it may have and lacks.
Lacking = Callable[[ml_collections.ConfigDict], Defaults]
_FLAG = "--config."
_OF_FLAX = ("parent", "name")
_SIMPLE = (bool, int, float, str, tuple)

unset = config_dict.placeholder


@dataclasses.dataclass(frozen=True)
class Mixed:
    """The default of a field of several types, `kinds`: each of them a number, str or tuple."""

    value: Any
    kinds: tuple[type, ...]


@dataclasses.dataclass(frozen=True)
class Added:
    """What was added to a config: fields, and dotted paths of new sections, outer ones first."""

    defaults: Defaults = dataclasses.field(default_factory=dict)
    sections: list[str] = dataclasses.field(default_factory=list)


def below(path: str, section: Fields, defaults: Mapping[str, Any]) -> Defaults:
    """The defaults of the fields that a section lacks, and all `Mixed` ones, by dotted path.

    `path` is the section's, '' for the config itself; `defaults` are by name.
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
    """Prefixes the names with the path of their section; '' is the config itself."""
    return {f"{path}.{name}" if path else name: default for name, default in defaults.items()}


def defaults_of(instance: Any, leave_out: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of a dataclass, by name, as a config that made it would hold them."""
    defaults = {}
    for field in dataclasses.fields(instance):
        if field.name in (*_OF_FLAX, *leave_out) or not field.init:
            continue
        value, kinds = getattr(instance, field.name), _kinds(field.type)
        # Configs name dtypes by strings, and hold None as a typed placeholder.
        if field.name == "dtype":
            value = jnp.dtype(value).name
        elif value is None:
            value = unset(kinds[0]) if kinds else None
        # Modules, functions and other objects cannot be set from a command line.
        if isinstance(value, (*_SIMPLE, config_dict.FieldReference)):
            defaults[field.name] = Mixed(value, kinds) if len(kinds) > 1 else value
    return defaults


def _kinds(annotation: Any) -> tuple[type, ...]:
    # Sequences are tuples in a config.
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return ()
    parts = typing.get_args(annotation)
    kinds = [tuple if typing.get_origin(kind) is abc.Sequence else kind for kind in parts]
    return tuple(kind for kind in kinds if kind in _SIMPLE)


def add_named(argv: Sequence[str], config: ml_collections.ConfigDict, lacking: Lacking) -> Added:
    """Adds the fields that a command line sets and `config` lacks, with their defaults.

    `config` must be unlocked; it is changed. A `Mixed` field gets the type of the given value.
    Raises `InputError` if the config belongs to another task, there is no such field, or its
    section needs a name first.
    """
    # 1. Which overrides does the config not take as it is?
    named = [(arg, arg.removeprefix(_FLAG)) for arg in argv if arg.startswith(_FLAG)]
    waiting = {
        path: text
        for path, _, text in (override.partition("=") for _, override in named)
        if not _takes(config, path, text)
    }
    added = Added()
    # 2. Ask for the optional fields with the other overrides applied, again after each addition:
    # which fields there are can depend on a value, as those of a source do on its name.
    while waiting:
        others = [arg for arg, override in named if override.partition("=")[0] not in waiting]
        overridden = _overridden([argv[0], *others], copy.deepcopy(config))
        with reading(overridden):
            defaults = lacking(overridden)
        ready = [path for path in waiting if path in defaults]
        if not ready:
            # Nothing more can be added: say what is wrong with the rest.
            _check_named(tuple(waiting), defaults)
            left = [f"{_FLAG}{path}={text}" for path, text in waiting.items()]
            check_overrides(left, overridden, defaults)
            break
        for path in ready:
            _add(config, path, defaults[path], waiting.pop(path), added)
    return added


def _check_named(paths: Sequence[str], defaults: Defaults) -> None:
    # The name of a section, such as a data source, decides which fields it has.
    for path in paths:
        section = path.rpartition(".")[0]
        if f"{section}.name" in defaults:
            raise InputError(
                f"{_FLAG}{section}.name must be set as well, got only {_FLAG}{path}; the name "
                "decides which fields there are"
            )


def _takes(config: ml_collections.ConfigDict, path: str, text: str) -> bool:
    # A field can hold a value of its own form; None has no type.
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
    # Types of one form are converted to each other when a flag is set.
    if issubclass(kind, bool | int | float):
        return float
    return tuple if issubclass(kind, list | tuple) else kind


def _add(
    config: ml_collections.ConfigDict, path: str, default: Any, text: str, added: Added
) -> None:
    # 1. Make the missing sections.
    *parents, name = path.split(".")
    section = config
    for depth, parent in enumerate(parents, start=1):
        if section.get(parent) is None:
            section[parent] = {}
            added.sections.append(".".join(parents[:depth]))
        section = section[parent]
    # 2. Remove a field of another type; it is added again below.
    if name in section:
        del section[name]
    else:
        added.defaults[path] = default
    # 3. Choose the type.
    if isinstance(default, Mixed):
        form = _form(type(_literal(text)))
        fitting = [kind for kind in default.kinds if _form(kind) is form]
        default = unset(fitting[0]) if fitting else default.value
    # 4. Every config needs its own placeholder: fields that share one change together.
    section[name] = unset(default.get_type()) if _is_unset(default) else default


def remove_defaults(config: ml_collections.ConfigDict, added: Added) -> None:
    """Removes added fields that were set to their defaults, then added sections left empty."""
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
    """The command-line arguments that set the fields which `config` lacks to their defaults."""
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
    # `read_flags` reports what is wrong with the command line later.
    with contextlib.suppress(flags.Error):
        values(argv)
    return config
