"""A classifier's variables from files of other libraries, and back."""

import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np
from etils import epath

from classifiers.models import presets
from classifiers.models.presets import Classifier
from classifiers.models.vit import ViT, sincos_positions
from classifiers.weights.positions import (
    FIXED_POSITIONS,
    POSITIONS,
    check_fixed_positions,
    has_fixed_positions,
    patch_grid,
    resized,
)
from classifiers.weights.tensor_rules import COUNTER, FUSED, tensor_rules
from launch.errors import InputError
from launch.runtime.checkpoints.safetensors_header import make_header
from launch.runtime.checkpoints.safetensors_io import (
    Tensor,
    check_finite,
    open_file,
    open_weights,
    write_file,
)
from launch.runtime.checkpoints.tensor_mapping import TensorMapping, check_fit, tensor_mappings
from launch.runtime.checkpoints.torch_file import open_torch_file

STEM = "model"
# Prefixes of models with a head; files of base models have none.
_TRANSFORMERS = ("vit.", "deit.", "resnet.")
HEADS = ("head", "head_dist")
_Arrays = dict[str, np.ndarray]


def open_tensors(path: epath.PathLike) -> dict[str, Tensor]:
    """Tensors of a .safetensors or .pth file, or of a folder with model.safetensors or its index.

    Raises:
        InputError: there is none, or it is damaged.
    """
    path = Path(path)
    if path.is_dir():
        return open_weights(path, STEM, None, integers=True).tensors
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; choose one with weights")
    return open_torch_file(path) if path.suffix == ".pth" else open_file(path, integers=True)


def find_layout(names: Iterable[str], where: Any) -> str:
    """The layout that tensors' names belong to; raises InputError if it is none."""
    names = list(names)
    # Names that only one layout has; base models of transformers have no prefix.
    signs = {
        "transformers": ("vit.", "deit.", "resnet.", "embeddings.", "embedder."),
        "timm": ("blocks.", "patch_embed."),
        "torchvision": ("layer1.", "conv1."),
        "efficientnet": ("_conv_stem.",),
    }
    for layout, starts in signs.items():
        if any(name.startswith(starts) for name in names):
            return layout
    raise InputError(
        f"{where}: {min(names, default='no tensor')} and the other names match none of the known "
        "layouts: transformers, timm, torchvision, EfficientNet-PyTorch"
    )


def load(
    path: epath.PathLike,
    model: Classifier,
    image_shape: tuple[int, int, int],
    new_head: bool = False,
) -> dict[str, Any]:
    """Variables in float32 from weights in any of `LAYOUTS`; `image_shape` is [h, w, c].

    The model's `pixels` and `norm_eps` must be those of the weights. Positions learned on another
    size are resized; `new_head` leaves the heads at zero, for other classes.

    Raises:
        InputError: there is no such file, it is damaged, or is not of this model; names the first
            tensor that is missing, unknown, of another shape, or not finite.
    """
    # 1. Match the file's names with ours.
    tensors = open_tensors(path)
    layout = find_layout(tensors, path)
    shapes = presets.variable_shapes(model, image_shape)
    mappings = tensor_mappings(shapes, tensor_rules(model, layout), FUSED)
    tensors = _tensors_of_model(tensors, mappings, layout)
    arrays: _Arrays = {}
    # 2. Set aside what is not read: old heads, and positions that we compute.
    if new_head:
        arrays = _new_heads(mappings)
        mappings = {name: m for name, m in mappings.items() if m.paths[0] not in arrays}
        heads = _head_names(layout)
        tensors = {name: tensors[name] for name in tensors if not name.startswith(heads)}
    if has_fixed_positions(model) and FIXED_POSITIONS in tensors:
        check_fixed_positions(tensors.pop(FIXED_POSITIONS).view(), model.width, path)
    # 3. Check all shapes before any tensor is read.
    _check_fit(mappings, tensors, path)
    # 4. Copy tensor by tensor: files are mapped into memory, and one is in memory at a time.
    for name, mapping in mappings.items():
        values = tensors[name].view()
        check_finite(name, tensors[name], values)
        array = np.array(values, np.float32)
        fits = mapping.paths != (POSITIONS,) or array.shape == mapping.file_shape
        if not fits and isinstance(model, ViT):
            array = resized(array, model, image_shape, path)
        # Transposed views would keep the whole fused tensor alive.
        ours = (np.ascontiguousarray(view) for view in mapping.to_ours(array))
        arrays |= zip(mapping.paths, ours, strict=True)
    return flax.traverse_util.unflatten_dict(arrays, sep=".")


def save(
    path: Path,
    variables: Mapping[str, Any],
    model: Classifier,
    image_shape: tuple[int, int, int],
    layout: str,
) -> None:
    """Writes variables as model.safetensors in another library's layout, in float32.

    Raises:
        InputError: the layout has no such model.
    """
    # Shapes are written first, and tensors are made one at a time: no second copy in memory.
    mappings = tensor_mappings(variables, tensor_rules(model, layout), FUSED)
    arrays = flax.traverse_util.flatten_dict(variables, sep=".")
    makers: dict[str, Callable[[], np.ndarray]] = {
        name: functools.partial(m.to_file, arrays) for name, m in mappings.items()
    }
    tensors: dict[str, tuple[tuple[int, ...], np.dtype]] = {
        name: (m.file_shape, np.dtype(np.float32)) for name, m in mappings.items()
    }
    # PyTorch's strict loading wants the counters of its batch norms.
    for name in [name for name in mappings if name.endswith(".running_mean")]:
        counter = name.replace("running_mean", COUNTER)
        tensors[counter] = ((), np.dtype(np.int64))
        makers[counter] = functools.partial(np.zeros, ())
    # timm's class has positions even where they are fixed.
    if has_fixed_positions(model):
        positions = sincos_positions(*patch_grid(model, image_shape), model.width)
        tensors[FIXED_POSITIONS] = (positions.shape, positions.dtype)
        makers[FIXED_POSITIONS] = lambda: positions
    header = make_header(tensors)
    write_file(
        path / f"{STEM}.safetensors", header, lambda name, dtype: makers[name]().astype(dtype)
    )


def trained_channels(tensors: Mapping[str, Any]) -> int:
    """The channels of the images that weights of a layout, or our variables, are for."""
    # The first kernel of each layout.
    firsts = (
        "patch_embeddings.projection.weight",
        "patch_embed.proj.weight",
        "conv1.weight",
        "_conv_stem.weight",
        "embedder.embedder.convolution.weight",
    )
    for name, tensor in tensors.items():
        if name.endswith(("patch_embed.kernel", "stem_conv.kernel")):
            return tensor.shape[2]  # ours: [h, w, in, out]
        if name.endswith(firsts) and not name.startswith("layer"):
            return tensor.shape[1]  # PyTorch's: [out, in, h, w]
    return 3


def _tensors_of_model(
    tensors: Mapping[str, Tensor], mappings: Mapping[str, TensorMapping], layout: str
) -> dict[str, Tensor]:
    """The tensors without those that nobody reads; names of a base model get the prefix of ours."""
    prefix = ""
    if layout == "transformers" and not any(name.startswith(_TRANSFORMERS) for name in tensors):
        prefix = next(iter(mappings)).partition(".")[0] + "."
    return {
        prefix + name: tensor
        for name, tensor in tensors.items()
        if not name.endswith(COUNTER) and ".pooler." not in prefix + name
    }


def _new_heads(mappings: Mapping[str, TensorMapping]) -> _Arrays:
    return {
        path: np.zeros(mapping.shape, np.float32)
        for mapping in mappings.values()
        for path in mapping.paths
        if path.split(".")[1] in HEADS
    }


def _head_names(layout: str) -> tuple[str, ...]:
    return {
        "transformers": ("classifier.", "cls_classifier.", "distillation_classifier."),
        "timm": ("head.", "head_dist."),
        "torchvision": ("fc.",),
        "efficientnet": ("_fc.",),
    }[layout]


def _check_fit(
    mappings: Mapping[str, TensorMapping], tensors: Mapping[str, Tensor], where: Any
) -> None:
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    advice_on = {}
    for name, mapping in mappings.items():
        shape, model_shape = shapes.get(name, ()), mapping.file_shape
        if mapping.paths == (POSITIONS,) and len(shape) == 3 and shape[::2] == model_shape[::2]:
            shapes[name] = model_shape  # as many as the images need, after they are resized
        if mapping.paths[0].split(".")[1] in HEADS:
            advice_on[name] = "choose the model that these weights belong to, or a new head"
    check_fit(mappings, shapes, where, advice_on=advice_on)
