"""Maps our arrays to PyTorch's names and axes, and back, by a model's table of rules."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.traverse_util
import numpy as np

from launch.errors import InputError
from launch.runtime.types import Array

# (pattern in our dotted path, replacement), applied in order.
Rules = Sequence[tuple[str, str | Callable[[re.Match], str]]]
# By number of axes. PyTorch has outputs before inputs, and puts the window of a convolution last:
# [i, o] becomes [o, i], and [h, w, i, o] becomes [o, i, h, w].
_KERNEL_AXES = {2: (1, 0), 4: (3, 2, 0, 1)}


@dataclasses.dataclass(frozen=True)
class TensorMapping:
    """One tensor of a file, and which of our arrays it holds."""

    paths: tuple[str, ...]  # dotted; several arrays are concatenated along the file's first axis
    shape: tuple[int, ...]  # of each of our arrays
    axes: tuple[int, ...]  # axis i of the file is our axes[i]; our other axes have size 1

    @property
    def file_shape(self) -> tuple[int, ...]:
        """The tensor's shape in the file."""
        shape = self.by_file_axis(self.shape)
        return (len(self.paths) * shape[0], *shape[1:]) if len(self.paths) > 1 else shape

    def by_file_axis(self, by_axis: Sequence[Any]) -> tuple[Any, ...]:
        """Reorders sizes or slices, one for each of our axes, to the file's axes."""
        return tuple(by_axis[axis] for axis in self.axes)

    def to_ours(self, array: np.ndarray) -> list[np.ndarray]:
        """Views with our axes of the file's tensor, or of a slice if it holds a single array."""
        arrays = np.split(array, len(self.paths)) if len(self.paths) > 1 else [array]
        arrays = [array.transpose(np.argsort(self.axes)) for array in arrays]
        return [np.expand_dims(array, self._left_out) for array in arrays]

    def to_file(self, arrays: Mapping[str, Array]) -> np.ndarray:
        """The file's tensor from our arrays by path; a view if it holds a single one."""
        axes = (*self.axes, *self._left_out)
        tensors = [np.asarray(arrays[path]).transpose(axes) for path in self.paths]
        # Axes of size 1 that the file lacks are now last: drop them.
        tensors = [x.reshape(x.shape[: len(self.axes)]) for x in tensors]
        return np.concatenate(tensors) if len(tensors) > 1 else tensors[0]

    @property
    def _left_out(self) -> tuple[int, ...]:
        return tuple(axis for axis in range(len(self.shape)) if axis not in self.axes)


def tensor_mappings(
    shapes: Mapping[str, Any], rules: Rules, fused: Sequence[str] = ()
) -> dict[str, TensorMapping]:
    """The tensors that a file of a model holds, by their names there.

    `shapes` are our variables, or their shapes, nested. Paths that `rules` map to the same name
    share a tensor; `fused` lists the modules that do, in the order they have in it.
    """
    mappings: dict[str, TensorMapping] = {}

    def order_in_tensor(path: str) -> int:
        return next((fused.index(name) for name in path.split(".") if name in fused), 0)

    flat = flax.traverse_util.flatten_dict(shapes, sep=".")
    for path in sorted(flat, key=order_in_tensor):
        name = path
        # 1. Translate the path.
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        # 2. Choose the axes: only kernels are laid out differently.
        shape = tuple(flat[path].shape)
        axes = _KERNEL_AXES[len(shape)] if path.endswith(".kernel") else tuple(range(len(shape)))
        # 3. Append to a tensor that holds other modules already.
        paths = (*mappings[name].paths, path) if name in mappings else (path,)
        mappings[name] = TensorMapping(paths, shape, axes)
    return mappings


def check_fit(
    mappings: Mapping[str, TensorMapping],
    shapes: Mapping[str, tuple[int, ...]],
    where: Any,
    *,
    model: str = "the model",
    advice: str = "choose the model that these weights belong to",
    advice_on: Mapping[str, str] | None = None,
    aliases: Mapping[str, str] | None = None,
) -> None:
    """Raises `InputError` for the first tensor that is missing, unknown, or of another shape.

    `shapes` are those in the files. `advice_on` replaces the message's `advice` for a tensor of
    another shape; `aliases` maps second names, which files may have too or instead, to first names.
    """
    aliases, advice_on = aliases or {}, advice_on or {}
    second_names = {name: alias for alias, name in aliases.items()}
    for name, mapping in mappings.items():
        names = [n for n in (name, second_names.get(name)) if n and n in shapes]
        if not names:
            raise InputError(
                f"{where}: the tensor {name} of {model} is missing; the weights are incomplete or "
                "of another model, download them again"
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
