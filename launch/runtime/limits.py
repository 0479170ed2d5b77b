"""Numbers of configs in the ranges that the work can be done with, before any of it is begun."""

import contextlib
import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping
from typing import Any

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


def check_model(model: Any, field: str) -> None:
    """Looks for fields of a Flax module that no network can be made of.

    What is annotated as an integer has to be one of at least 1, or 0 where that is the default; a
    float has to be finite and not below 0.

    Args:
        model: the module, not yet set up.
        field: what its fields are in.

    Raises:
        InputError: names the field.
    """
    for entry in dataclasses.fields(model):
        value, kinds = getattr(model, entry.name), _kinds(entry.type)
        name = f"{field}.{entry.name}"
        if entry.name in _OF_FLAX or (value is None and type(None) in kinds):
            continue
        if int in kinds:
            least = 0 if entry.default == 0 else 1
            values = value if isinstance(value, tuple | list) else (value,)
            if not values:
                raise InputError(f"{name}={value}: at least one integer is needed")
            for number in values:
                _check_integer(name, number, least, _MOST.get(entry.name, _MOST_WIDTH))
        elif float in kinds and not _is_amount(value):
            raise InputError(f"{name}={value}: a finite number of at least 0 is needed")


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
        raise InputError(f"{field}: no network can be made of its fields ({reason})") from error


def _kinds(annotation: Any) -> set[Any]:
    """The types that an annotation is made of: int and None of `Sequence[int] | None`."""
    inner = typing.get_args(annotation)
    return set().union(*map(_kinds, inner)) if inner else {annotation}


def _check_integer(name: str, value: Any, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"{name}={value!r}: an integer is needed")
    if value < least:
        raise InputError(f"{name}={value}: at least {least} is needed")
    if value > most:
        raise InputError(f"{name}={value}: at most {most} is possible")


def _is_amount(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value < math.inf
