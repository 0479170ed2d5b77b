"""Our arrays under PyTorch's names and with its axes, and back, by a model's table of rules."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.traverse_util
import numpy as np

from launch.errors import InputError
from launch.runtime.types import Array

# (pattern in our dotted path, what is written for it), applied in order.
Rules = Sequence[tuple[str, str | Callable[[re.Match], str]]]
# PyTorch writes outputs before inputs, and the space of a convolution behind both.
_KERNEL_AXES = {2: (1, 0), 4: (3, 2, 0, 1)}


@dataclasses.dataclass(frozen=True)
class TensorMapping:
    """One tensor of a file, and what of ours it holds.

    Attributes:
        paths: dotted, of our arrays; several lie one after the other along the file's first axis.
        shape: of each of ours.
        axes: axis i of the file is our axis `axes[i]`. What is missing of ours has one entry.
    """

    paths: tuple[str, ...]
    shape: tuple[int, ...]
    axes: tuple[int, ...]

    @property
    def file_shape(self) -> tuple[int, ...]:
        """Shape in the file."""
        shape = self.by_file_axis(self.shape)
        return (len(self.paths) * shape[0], *shape[1:]) if len(self.paths) > 1 else shape

    def by_file_axis(self, by_axis: Sequence[Any]) -> tuple[Any, ...]:
        """Sizes or slices, one for each of our axes, in the order of the file's axes."""
        return tuple(by_axis[axis] for axis in self.axes)

    def to_ours(self, array: np.ndarray) -> list[np.ndarray]:
        """Views of the file's tensor with our axes, one for each path.

        Args:
            array: the tensor; where it holds one array of ours, any slice of it will do.
        """
        arrays = np.split(array, len(self.paths)) if len(self.paths) > 1 else [array]
        arrays = [array.transpose(np.argsort(self.axes)) for array in arrays]
        return [np.expand_dims(array, self._left_out) for array in arrays]

    def to_file(self, arrays: Mapping[str, Array]) -> np.ndarray:
        """The file's tensor, of our arrays by path; a view where it holds one of them."""
        axes = (*self.axes, *self._left_out)
        tensors = [np.asarray(arrays[path]).transpose(axes) for path in self.paths]
        tensors = [x.reshape(x.shape[: len(self.axes)]) for x in tensors]
        return np.concatenate(tensors) if len(tensors) > 1 else tensors[0]

    @property
    def _left_out(self) -> tuple[int, ...]:
        return tuple(axis for axis in range(len(self.shape)) if axis not in self.axes)


def tensor_mappings(
    shapes: Mapping[str, Any], rules: Rules, fused: Sequence[str] = ()
) -> dict[str, TensorMapping]:
    """What a file holds of a model, by the file's names.

    Args:
        shapes: our variables or their shapes, nested.
        rules: of the model. Paths that become one name lie in one tensor.
        fused: our modules that one tensor holds, in its order.
    """
    mappings: dict[str, TensorMapping] = {}

    def order_in_tensor(path: str) -> int:
        return next((fused.index(name) for name in path.split(".") if name in fused), 0)

    flat = flax.traverse_util.flatten_dict(shapes, sep=".")
    for path in sorted(flat, key=order_in_tensor):
        name = path
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        shape = tuple(flat[path].shape)
        axes = _KERNEL_AXES[len(shape)] if path.endswith(".kernel") else tuple(range(len(shape)))
        paths = (*mappings[name].paths, path) if name in mappings else (path,)
        mappings[name] = TensorMapping(paths, shape, axes)
    return mappings


def check_fit(
    mappings: Mapping[str, TensorMapping],
    shapes: Mapping[str, tuple[int, ...]],
    where: Any,
    *,
    model: str = "the model",
    advice: str = "use the model of these weights",
    advice_on: Mapping[str, str] | None = None,
    aliases: Mapping[str, str] | None = None,
) -> None:
    """Compares the tensors of files with those of a model.

    Args:
        mappings: the model's.
        shapes: in the files, by name.
        where: the files are, for messages.
        model: what the message calls the model.
        advice: for the message.
        advice_on: for the message about the shape of a tensor, by its name.
        aliases: second names that files may hold as well, or instead: {second: first}.

    Raises:
        InputError: names the first tensor that is missing, too much or of another shape.
    """
    aliases, advice_on = aliases or {}, advice_on or {}
    second_names = {name: alias for alias, name in aliases.items()}
    for name, mapping in mappings.items():
        names = [n for n in (name, second_names.get(name)) if n and n in shapes]
        if not names:
            raise InputError(
                f"{where}: the tensor {name} of {model} is missing; the weights are of "
                "another model or incomplete, download them again"
            )
        for name in names:
            if tuple(shapes[name]) != mapping.file_shape:
                raise InputError(
                    f"{where}: the tensor {name} must have the shape {mapping.file_shape} "
                    f"of {model}, got {tuple(shapes[name])}; {advice_on.get(name, advice)}"
                )
    if extra := sorted(shapes.keys() - mappings.keys() - aliases.keys()):
        raise InputError(
            f"{where}: {model} has no tensor {extra[0]} ({len(extra)} too many); {advice}"
        )
