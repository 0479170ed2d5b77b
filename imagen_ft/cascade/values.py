"""What values of settings and arguments must be, for callers of a cascade in Python."""

import operator
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from jax.sharding import Mesh

from launch.errors import InputError
from launch.runtime.devices.mesh import AXES
from launch.runtime.limits import MOST_SEED

# Characters of a value shown in a message.
_SHOWN = 80


class Kind(NamedTuple):
    """Values of one kind."""

    words: str  # what they must be, for messages
    # Makes a value one of them; raises TypeError, ValueError or OverflowError where it cannot.
    convert: Callable[[Any], Any]

    def of(self, name: str, value: Any) -> Any:
        """The value of the setting or argument `name`, converted to this kind.

        Raises:
            InputError: it is not of this kind.
        """
        try:
            return self.convert(value)
        except (TypeError, ValueError, OverflowError):
            raise InputError(f"{name} must be {self.words}, got {_shown(value)}") from None


def only(*types: type) -> Callable[[Any], Any]:
    """Converts nothing: a value must be of one of these types."""

    def convert(value: Any) -> Any:
        if not isinstance(value, types):
            raise TypeError
        return value

    return convert


def _integer_from(least: int, most: int | None = None) -> Callable[[Any], int]:
    def convert(value: Any) -> int:
        # index(), not int(): it takes numpy's integers and refuses 2.0 and '2'.
        number = operator.index(value)
        if number < least or (most is not None and number > most):
            raise ValueError
        return number

    return convert


def _number(value: Any) -> float:
    # float() would take True as 1 and '2' as 2.
    if isinstance(value, bool | str):
        raise TypeError
    return float(value)


def _mixture(value: Any) -> float | str:
    return "learned" if isinstance(value, str) and value == "learned" else _number(value)


def _texts(value: Any) -> Any:
    value = value.tolist() if isinstance(value, np.ndarray) else value
    if isinstance(value, bytes | bytearray) or not isinstance(value, Sequence):
        raise TypeError
    return value


def _captions(value: Any) -> list[str]:
    return [NAME.convert(text) for text in _texts(value)]


def _rows(value: Any) -> np.ndarray:
    array = np.asarray(value)
    # An empty list becomes float64: it has no wrong number in it.
    if array.ndim != 1 or not (np.issubdtype(array.dtype, np.integer) or not len(array)):
        raise TypeError
    return array


def _guide(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not set(value) <= _OF_GUIDE.keys():
        raise TypeError
    return {name: _OF_GUIDE[name].convert(own) for name, own in value.items()}


def _labels(value: Any) -> np.ndarray:
    array = np.asarray(value)
    if not array.ndim:
        raise TypeError
    return array


def _array(value: Any) -> Any:
    # Arrays that are read on demand (`RealImages`) must not be copied here.
    return value if hasattr(value, "shape") and hasattr(value, "dtype") else np.asarray(value)


def _arrays(value: Any) -> list[np.ndarray]:
    if isinstance(value, str | bytes | Mapping):
        raise TypeError
    return [np.asarray(array) for array in value]


def _function(value: Any) -> Any:
    if not callable(value):
        raise TypeError
    return value


def _mesh(value: Any) -> Any:
    if isinstance(value, Mesh):
        return value
    if not isinstance(value, Mapping) or not set(value) <= set(AXES):
        raise TypeError
    # Sizes alone: `Cascade.load` makes the mesh.
    return {axis: operator.index(size) for axis, size in value.items()}


def _sources(value: Any) -> Any:
    if isinstance(value, ml_collections.ConfigDict):
        return value
    if isinstance(value, Mapping | bytes):
        raise TypeError
    # One path or several; a string is a sequence too.
    return [os.fspath(path) for path in ([value] if isinstance(value, _PATHS) else value)]


_PATHS = (str, os.PathLike)
INTEGER = Kind("an integer", operator.index)
COUNT = Kind("an integer of at least 1", _integer_from(1))
SEED = Kind(f"an integer from 0 to {MOST_SEED}", _integer_from(0, MOST_SEED))
NUMBER = Kind("a number", _number)
NUMBERS = Kind("two numbers", lambda ends: tuple(map(_number, ends)))
MIXTURE = Kind("a number or 'learned'", _mixture)
FLAG = Kind("True or False", only(bool))
NAME = Kind("a name", only(str))
PATH = Kind("a path", lambda path: os.path.expanduser(NAME.convert(os.fspath(path))))
_OF_GUIDE = {"run": PATH, "ema": NAME, "best": FLAG, "variant": NAME, "lora": PATH}
GUIDE = Kind("a dict of some of run, ema, best, variant, lora", _guide)
TEXTS = Kind("a string, or a list of strings", _texts)
CAPTIONS = Kind("a list of strings", _captions)
LABELS = Kind("a list of class numbers", _labels)
ROWS = Kind("a list of integers", _rows)
IMAGES = Kind("images, uint8 [n, size, size, c]", _array)
ARRAYS = Kind("a list of images, uint8 [h, w, c] each", _arrays)
FUNCTION = Kind("a function", _function)
MESH = Kind("a mesh, or the sizes of its axes, such as {'data': -1}", _mesh)
SOURCE = Kind("a config, a file, a run or weights, or a list of runs or weights", _sources)


def _shown(value: Any) -> str:
    """A value on one short line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
