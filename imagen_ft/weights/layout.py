"""Names and layouts of the reference's tensors: one table of rules for a model, for both ways."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.traverse_util
import numpy as np

from launch.errors import InputError

# (pattern in our dotted parameter path, what it is called in PyTorch's files), applied in order.
Rules = Sequence[tuple[str, str]]

UNET_RULES: Rules = (
    (r"^(down_blocks|up_blocks)_(\d+)_([a-z]+)_(\d+)\.", r"\1.\2.\3.\4."),
    (r"^mid_block_([a-z]+)_(\d+)\.", r"mid_block.\1.\2."),
    (r"\.to_out_0\.", ".to_out.0."),
    (r"\.(kernel|scale)$", ".weight"),
)
T5_RULES: Rules = (
    (r"^block_(\d+)\.SelfAttention_(\w)\.", r"encoder.block.\1.layer.0.SelfAttention.\2."),
    (r"^block_(\d+)\.layer_(\d)_layer_norm\.", r"encoder.block.\1.layer.\2.layer_norm."),
    (r"^block_(\d+)\.(wi_\d|wo)\.", r"encoder.block.\1.layer.1.DenseReluDense.\2."),
    (
        r"^relative_attention_bias\.embedding\.",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.",
    ),
    (r"^final_layer_norm\.", "encoder.final_layer_norm."),
    (r"\.(kernel|embedding)$", ".weight"),
)
# PyTorch writes outputs before inputs, and the space of a convolution behind both.
KERNEL_AXES = {2: (1, 0), 4: (3, 2, 0, 1)}

Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One parameter, here and in the reference.

    Attributes:
        path: ours, dotted.
        name: the reference's.
        shape: ours.
        axes: axis i of the reference is our axis `axes[i]`.
    """

    path: str
    name: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]

    @property
    def reference_shape(self) -> tuple[int, ...]:
        """Shape in the reference's files."""
        return tuple(self.shape[axis] for axis in self.axes)

    def reference_index(self, index: Index) -> Index:
        """Where a part of our array lies in the reference's."""
        return tuple(index[axis] for axis in self.axes)

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        """A view of the reference's array, or of a part of it, with our axes."""
        return array.transpose(np.argsort(self.axes))

    def to_reference(self, array: np.ndarray) -> np.ndarray:
        """A view of our array with the reference's axes."""
        return array.transpose(self.axes)


def entries(shapes: Mapping[str, Any], rules: Rules) -> dict[str, Entry]:
    """The parameters by the reference's name.

    Args:
        shapes: our parameters or their shapes, nested.
        rules: of the model.
    """
    found = {}
    for path, leaf in flax.traverse_util.flatten_dict(shapes, sep=".").items():
        name = path
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        shape = tuple(leaf.shape)
        same = tuple(range(len(shape)))
        axes = KERNEL_AXES[len(shape)] if path.endswith(".kernel") else same
        found[name] = Entry(path, name, shape, axes)
    return found


def unflatten(params: Mapping[str, Any]) -> dict[str, Any]:
    """Nested parameters from dotted paths."""
    return flax.traverse_util.unflatten_dict(dict(params), sep=".")


def check_fit(
    wanted: Mapping[str, Entry],
    found: Mapping[str, tuple[int, ...]],
    aliases: Mapping[str, str],
    where: Any,
) -> None:
    """Compares the tensors of files with those of a model.

    Args:
        wanted: the model's.
        found: shapes in the files, by name.
        aliases: second names that files may hold as well, or instead.
        where: the folder, for the message.

    Raises:
        InputError: names the first tensor that is missing, too much or of another shape.
    """
    second = {name: alias for alias, name in aliases.items()}
    for name, entry in wanted.items():
        held = [n for n in (name, second.get(name)) if n in found]
        if not held:
            raise InputError(
                f"{where}: the tensor {name} is missing, which the model of its config.json has; "
                "the weights are of another model or incomplete, download them again"
            )
        for n in held:
            if tuple(found[n]) != entry.reference_shape:
                raise InputError(
                    f"{where}: the tensor {n} has the shape {tuple(found[n])}, the model of its "
                    f"config.json {entry.reference_shape}; use the config.json of these weights"
                )
    extra = sorted(found.keys() - wanted.keys() - aliases.keys())
    if extra:
        raise InputError(
            f"{where}: there is no tensor {extra[0]} in the model of its config.json "
            f"({len(extra)} too many); use the config.json of these weights"
        )
