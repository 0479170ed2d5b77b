"""Ranges of numbers in configs, checked before any work starts."""

import contextlib
import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from launch.errors import InputError
from launch.fields import Fields

# JAX counts steps in int32 and keeps the low 32 bits of a seed.
MOST, MOST_SEED = 2**31 - 2, 2**32 - 1
SEED = (0, MOST_SEED)
# Pixels of an image's side, or tokens of a text: more fit into no memory.
SIDE = (1, 2**16)
# Images in a batch, over all devices.
BATCH = (1, 2**24)
# Upper bounds of a model's integer fields, far above anything ever trained: a typo would otherwise
# compile for hours, as layers are unrolled, or run out of memory.
_MOST_WIDTH = 2**17
_MOST = {
    "depth": 1000,
    "layers_per_block": 1000,
    "num_classes": 2**24,
    "num_layers": 1000,
    "stage_sizes": 1000,
    "vocab_size": 2**20,
}
# Fields that Flax adds to every module.
_OF_FLAX = ("name", "parent")
_NEEDED = {
    bool: "True or False",
    str: "a string",
}
T = TypeVar("T")


def check_numbers(
    config: Fields, limits: Mapping[str, tuple[int, int]], field: str = "config"
) -> None:
    """Raises `InputError` if an integer of section `field` is out of range; absent fields pass.

    `limits` holds the least and the greatest allowed value by field name.
    """
    for name, (least, most) in limits.items():
        if name in config:
            _check_integer(f"{field}.{name}", config[name], least, most)


def make_module(kind: type[T], fields: Mapping[str, Any], field: str) -> T:
    """Makes a Flax module after checking its fields against their annotations.

    An int must be at least 1 (0 if that is its default), a float finite and not negative; bool, str
    and sequences must be what they are annotated as; other annotations pass. Raises `InputError`
    that names `field` and the field in it.
    """
    for entry in dataclasses.fields(kind):  # type: ignore[arg-type]
        if entry.name in fields and entry.name not in _OF_FLAX:
            _check_value(f"{field}.{entry.name}", fields[entry.name], entry)
    return kind(**fields)


@contextlib.contextmanager
def building(field: Any) -> Iterator[None]:
    """Turns errors of the block, which builds a network, into an `InputError` about `field`."""
    # For work that only the config can break, such as a width that the heads do not divide.
    try:
        # Tracing raises these types for shapes that do not fit.
        yield
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{field}: its fields do not fit together ({reason}); change one of them"
        ) from error


def _check_value(name: str, value: Any, entry: dataclasses.Field) -> None:
    single, several = _kinds(entry.type)
    # None passes where the annotation allows it.
    if value is None and type(None) in single:
        return
    # A union of a type and a sequence of it takes either.
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
    # Types of single values, and types of elements of sequences.
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
        # What is 0 by default can be switched off.
        _check_integer(name, value, least, _MOST.get(entry.name, _MOST_WIDTH))
    elif kind is float and not _is_amount(value):
        raise InputError(f"{name} must be a finite number of at least 0, got {value!r}")
    elif kind in (bool, str) and not isinstance(value, kind):
        raise InputError(f"{name} must be {_NEEDED[kind]}, got {value!r}")


def _check_integer(name: str, value: Any, least: int, most: int) -> None:
    # bool is a subclass of int.
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise InputError(f"{name} must be at least {least}, got {value}")
    if value > most:
        raise InputError(f"{name} must be at most {most}, got {value}")


def _is_amount(value: Any) -> bool:
    # The comparison is False for NaN.
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and bool(0 <= value < math.inf)
    )
