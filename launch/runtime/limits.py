"""Numbers of configs in the ranges that the work can be done with, before any of it is begun."""

import contextlib
import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from launch.errors import InputError
from launch.fields import Fields

# Steps and the like are counted in int32; JAX makes keys of the last 32 bits of a seed.
MOST, MOST_SEED = 2**31 - 2, 2**32 - 1
SEED = (0, MOST_SEED)
# Images of more pixels each way, and longer texts, fit nowhere.
SIDE = (1, 2**16)
BATCH = (1, 2**24)
# A model's fields may be up to: each is far above all that was ever trained. Layers are unrolled.
_MOST_WIDTH = 2**17
_MOST = {
    "depth": 1000,
    "layers_per_block": 1000,
    "num_classes": 2**24,
    "num_layers": 1000,
    "stage_sizes": 1000,
    "vocab_size": 2**20,
}
_OF_FLAX = ("name", "parent")
_NEEDED = {
    bool: "True or False",
    str: "a string",
}
T = TypeVar("T")


def check_numbers(
    config: Fields, limits: Mapping[str, tuple[int, int]], field: str = "config"
) -> None:
    """Looks for integers that are out of range; fields that the config lacks are passed over.

    Args:
        config: or a part of it.
        limits: by name of a field, the least and the most it may be.
        field: what the part is called.

    Raises:
        InputError: names the field.
    """
    for name, (least, most) in limits.items():
        if name in config:
            _check_integer(f"{field}.{name}", config[name], least, most)


def make_module(kind: type[T], fields: Mapping[str, Any], field: str) -> T:
    """A Flax module, of fields that a network can be made of.

    What is annotated as an integer has to be one of at least 1, or 0 where that is the default; a
    float has to be finite and not below 0; bool, str and sequences are needed where they are
    annotated. Other annotations are passed over.

    Args:
        kind: the class.
        fields: its fields by name.
        field: what they are in, for messages.

    Raises:
        InputError: names the field.
    """
    for entry in dataclasses.fields(kind):  # type: ignore[arg-type]
        if entry.name in fields and entry.name not in _OF_FLAX:
            _check_value(f"{field}.{entry.name}", fields[entry.name], entry)
    return kind(**fields)


@contextlib.contextmanager
def building(field: Any) -> Iterator[None]:
    """In its block shapes of a network are worked out, which only its config's fields decide about.

    Args:
        field: what they are in.

    Raises:
        InputError: they do not fit together, such as widths that heads do not divide.
    """
    try:
        yield
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{field}: its fields do not fit together ({reason}); change one of them"
        ) from error


def _check_value(name: str, value: Any, entry: dataclasses.Field) -> None:
    """Looks whether a value is of the kind that a field's annotation says."""
    single, several = _kinds(entry.type)
    if value is None and type(None) in single:
        return
    if single and not (several and isinstance(value, tuple | list)):
        (kind,) = single - {type(None)}
        _check_kind(name, value, kind, entry)
        return
    (kind,) = several
    if not isinstance(value, tuple | list):
        raise InputError(f"{name} must be a list of values, got {value!r}; put them in brackets")
    if not value:
        raise InputError(f"{name} must hold at least one value, got {value}")
    for element in value:
        _check_kind(name, element, kind, entry)


def _kinds(annotation: Any) -> tuple[set[Any], set[Any]]:
    """The types of single values that an annotation allows, and those in sequences of it."""
    inner = typing.get_args(annotation)
    if typing.get_origin(annotation) is Sequence:
        return set(), set(inner)
    if not inner:
        return {annotation}, set()
    singles, sequences = zip(*map(_kinds, inner), strict=True)
    return set().union(*singles), set().union(*sequences)


def _check_kind(name: str, value: Any, kind: Any, entry: dataclasses.Field) -> None:
    if kind is int:
        least = 0 if entry.default == 0 else 1
        _check_integer(name, value, least, _MOST.get(entry.name, _MOST_WIDTH))
    elif kind is float and not _is_amount(value):
        raise InputError(f"{name} must be a finite number of at least 0, got {value!r}")
    elif kind in (bool, str) and not isinstance(value, kind):
        raise InputError(f"{name} must be {_NEEDED[kind]}, got {value!r}")


def _check_integer(name: str, value: Any, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise InputError(f"{name} must be at least {least}, got {value}")
    if value > most:
        raise InputError(f"{name} must be at most {most}, got {value}")


def _is_amount(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and bool(0 <= value < math.inf)
    )
