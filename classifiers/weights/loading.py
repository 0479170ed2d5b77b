"""Variables of a classifier from files of other libraries, and back."""

import functools
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np
from etils import epath

from classifiers.models import presets
from classifiers.models.presets import Classifier
from classifiers.models.vit import ViT, resize_positions, sincos_positions
from classifiers.weights.layouts import COUNTER, Entry, entries
from launch.errors import InputError
from launch.runtime.checkpoints.safetensors_io import (
    Tensor,
    make_header,
    open_file,
    open_weights,
    write_file,
)

STEM = "model"
POSITIONS, FIXED_POSITIONS = "params.positions", "pos_embed"
_TRANSFORMERS = ("vit.", "deit.", "resnet.")
HEADS = ("head", "head_dist")
_Arrays = dict[str, np.ndarray]


def open_tensors(path: epath.PathLike) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a folder with model.safetensors or its index.

    Raises:
        InputError: there is none, or it is damaged.
    """
    path = Path(path)
    if path.is_dir():
        return open_weights(path, STEM, None, integers=True).tensors
    if not path.exists():
        raise InputError(f"{path}: there is no such file or folder; name one with weights")
    return open_file(path, integers=True)


def find_layout(names: Iterable[str], where: Any) -> str:
    """The layout of `LAYOUTS` that tensors' names tell.

    Raises:
        InputError: none of them.
    """
    names = list(names)
    signs = {
        "transformers": ("vit.", "deit.", "resnet.", "embeddings.", "embedder."),
        "timm": ("blocks.", "patch_embed."),
        "torchvision": ("layer1.", "conv1."),
    }
    for layout, starts in signs.items():
        if any(name.startswith(starts) for name in names):
            return layout
    raise InputError(
        f"{where}: {min(names, default='no tensor')} and the rest are of no layout that is known, "
        "which are transformers', timm's and torchvision's"
    )


def load(
    path: epath.PathLike,
    model: Classifier,
    image_shape: tuple[int, int, int],
    new_head: bool = False,
) -> dict[str, Any]:
    """Loads weights of transformers, timm or torchvision into a model's variables.

    Args:
        path: see `open_tensors`.
        model: the network; its `pixels` and `norm_eps` are those of the weights.
        image_shape: [h, w, c] of its images. Positions learned on squares of another size are
            resized, see `vit.resize_positions`.
        new_head: leave the heads at zero, for other classes.

    Returns:
        Variables in float32, for `model.apply`.

    Raises:
        InputError: no such file, a damaged one, or one that is not of this model: names the first
            tensor that is missing, too much or of another shape.
    """
    tensors = open_tensors(path)
    layout = find_layout(tensors, path)
    shapes = presets.variable_shapes(model, image_shape)
    wanted = entries(model, shapes, layout)
    held = _our_names(tensors, wanted, layout)
    arrays: _Arrays = {}
    if new_head:
        arrays = _new_heads(wanted)
        wanted = {name: entry for name, entry in wanted.items() if entry.paths[0] not in arrays}
        held = {name: held[name] for name in held if not name.startswith(_head_names(layout))}
    fixed = held.pop(FIXED_POSITIONS, None) if _is_fixed(model) else None
    if fixed is not None:
        _check_fixed(fixed.view(), model.width, path)
    _check(wanted, held, path)
    for name, entry in wanted.items():
        array = np.array(held[name].view(), np.float32)
        if entry.paths == (POSITIONS,) and array.shape != entry.file_shape:
            array = resized(array, model, image_shape, path)
        arrays |= {key: np.ascontiguousarray(part) for key, part in entry.to_ours(array).items()}
    return flax.traverse_util.unflatten_dict(arrays, sep=".")


def save(
    path: Path,
    variables: Mapping[str, Any],
    model: Classifier,
    image_shape: tuple[int, int, int],
    layout: str,
) -> None:
    """Writes variables as model.safetensors in another library's layout, in float32.

    Args:
        path: a folder that exists.
        variables: of the model.
        model: the network.
        image_shape: [h, w, c] of its images.
        layout: one of `LAYOUTS`.

    Raises:
        InputError: the layout has no such model.
    """
    found = entries(model, variables, layout)
    arrays = flax.traverse_util.flatten_dict(variables, sep=".")
    makers = {name: functools.partial(entry.to_file, arrays) for name, entry in found.items()}
    tensors = {name: (entry.file_shape, np.dtype(np.float32)) for name, entry in found.items()}
    for name in [name for name in found if name.endswith(".running_mean")]:
        counter = name.replace("running_mean", COUNTER)
        tensors[counter] = ((), np.dtype(np.int64))
        makers[counter] = functools.partial(np.zeros, ())
    if _is_fixed(model):
        positions = sincos_positions(*_grid(model, image_shape), model.width)
        tensors[FIXED_POSITIONS] = (positions.shape, positions.dtype)
        makers[FIXED_POSITIONS] = lambda: positions
    header = make_header(tensors)
    write_file(
        path / f"{STEM}.safetensors", header, lambda name, dtype: makers[name]().astype(dtype)
    )


def trained_size(tensors: Mapping[str, Any], model: Classifier) -> int | None:
    """Pixels each way of the images that learned positions are for; None where there are none.

    Args:
        tensors: whatever has a shape, by a file's names or by our paths.
        model: the network.

    Raises:
        InputError: the images are not square.
    """
    names = ("position_embeddings", FIXED_POSITIONS, POSITIONS)
    found = [tensor for name, tensor in tensors.items() if name.endswith(names)]
    if not isinstance(model, ViT) or not found:
        return None
    return _rows(found[0].shape[1], model, "the weights") * model.patch_size


def trained_channels(tensors: Mapping[str, Any]) -> int:
    """Channels of the images that weights of a layout, or our variables, are for."""
    firsts = ("patch_embeddings.projection.weight", "patch_embed.proj.weight", "conv1.weight")
    firsts += ("embedder.embedder.convolution.weight",)
    for name, tensor in tensors.items():
        if name.endswith(("patch_embed.kernel", "stem_conv.kernel")):
            return tensor.shape[2]
        if name.endswith(firsts) and not name.startswith("layer"):
            return tensor.shape[1]
    return 3


def resized(
    positions: np.ndarray, model: ViT, image_shape: tuple[int, int, int], where: Any
) -> np.ndarray:
    """Positions learned on square images, for images of another shape.

    Args:
        positions: [1, n, d].
        model: the network.
        image_shape: [h, w, c] of the images wanted.
        where: the positions come from, for the message.

    Raises:
        InputError: there are not as many as a square image has.
    """
    rows = _rows(positions.shape[1], model, where)
    return resize_positions(
        positions, _placed_tokens(model), (rows, rows), _grid(model, image_shape)
    )


def _our_names(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Entry], layout: str
) -> dict[str, Tensor]:
    """The tensors without those that nobody reads; those of a base model with its prefix."""
    prefix = ""
    if layout == "transformers" and not any(name.startswith(_TRANSFORMERS) for name in tensors):
        prefix = next(iter(wanted)).partition(".")[0] + "."
    named = {prefix + name: tensor for name, tensor in tensors.items()}
    return {
        name: tensor
        for name, tensor in named.items()
        if not name.endswith(COUNTER) and ".pooler." not in name
    }


def _new_heads(wanted: Mapping[str, Entry]) -> _Arrays:
    return {
        path: np.zeros(entry.shape, np.float32)
        for entry in wanted.values()
        for path in entry.paths
        if path.split(".")[1] in HEADS
    }


def _head_names(layout: str) -> tuple[str, ...]:
    return {
        "transformers": ("classifier.", "cls_classifier.", "distillation_classifier."),
        "timm": ("head.", "head_dist."),
        "torchvision": ("fc.",),
    }[layout]


def _check(wanted: Mapping[str, Entry], held: Mapping[str, Tensor], where: Any) -> None:
    for name, entry in wanted.items():
        if name not in held:
            raise InputError(
                f"{where}: the tensor {name} is missing, which the model has; the weights are of "
                "another model or incomplete"
            )
        found, shape = held[name].shape, entry.file_shape
        alike = entry.paths == (POSITIONS,) and len(found) == 3 and found[::2] == shape[::2]
        if found != shape and not alike:
            raise InputError(
                f"{where}: the tensor {name} has the shape {found}, the model's has {shape}; "
                "use the model of these weights"
                + (", or a new head" if entry.paths[0].split(".")[1] in HEADS else "")
            )
    if extra := sorted(held.keys() - wanted.keys()):
        raise InputError(
            f"{where}: there is no tensor {extra[0]} in the model ({len(extra)} too many); use the "
            "model of these weights"
        )


def _is_fixed(model: Classifier) -> bool:
    return isinstance(model, ViT) and model.positions == "sincos"


def _grid(model: ViT, image_shape: tuple[int, int, int]) -> tuple[int, int]:
    return image_shape[0] // model.patch_size, image_shape[1] // model.patch_size


def _placed_tokens(model: ViT) -> int:
    """Tokens before the patches that have positions."""
    return model.num_tokens if model.positions == "learned" else 0


def _rows(positions: int, model: ViT, where: Any) -> int:
    """Rows of patches of a square image that has so many positions."""
    num_tokens = _placed_tokens(model)
    rows = math.isqrt(max(0, positions - num_tokens))
    if rows == 0 or rows**2 + num_tokens != positions:
        raise InputError(
            f"{where}: {positions} positions, which are not those of a square image and "
            f"{num_tokens} tokens; use the model of these weights"
        )
    return rows


def _check_fixed(found: np.ndarray, width: int, where: Any) -> None:
    rows = math.isqrt(found.shape[1]) if found.ndim == 3 else 0
    fits = rows and found.shape == (1, rows**2, width)
    if not fits or np.abs(found - sincos_positions(rows, rows, width)).max() > 1e-2:
        raise InputError(
            f"{where}: {FIXED_POSITIONS} does not hold the model's fixed positions; choose a model "
            "with positions='learned_patches'"
        )
