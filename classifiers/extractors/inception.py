"""Inception-v3 of 2015 from the files that torch-fidelity and pytorch-fid download."""

import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from classifiers.extractors.extractor import Extractor, Taps
from classifiers.extractors.pixel_rules import INCEPTION_RULES, check_rule, inception_pixels
from classifiers.models.inception import SIZE, Inception
from launch.errors import InputError
from launch.runtime.checkpoints.content_digest import content_digest
from launch.runtime.checkpoints.safetensors_io import open_file
from launch.runtime.checkpoints.tensor_mapping import Rules, check_fit, tensor_mappings
from launch.runtime.checkpoints.torch_file import open_torch_file
from launch.runtime.types import Array, Variables

# What torch-fidelity and what pytorch-fid call the file; it is the same one.
FILES = (
    "weights-inception-2015-12-05-6726825d.pth",
    "pt_inception-2015-12-05-6726825d.pth",
)
_EPSILON = 1e-3  # of the batch norms
_RULES: Rules = (
    (r"^params\.", ""),
    (r"^(Mixed_\w\w)_", r"\1."),
    (r"^fc\.kernel$", "fc.weight"),
    (r"^fc_bias$", "fc.bias"),
    (r"(?<!^fc)\.(kernel|bias)$", r".conv.\1"),
    (r"\.conv\.kernel$", ".conv.weight"),
)
_NORM = ("weight", "bias", "running_mean", "running_var")


def inception(rule: str = "tf1", path: epath.PathLike | None = None) -> Extractor:
    """The extractor of FID, IS, KID and sFID, with one of `INCEPTION_RULES`.

    `path` is a .pth or .safetensors file of the same names; None looks for `FILES` where
    torch-fidelity and pytorch-fid download them.

    Raises:
        InputError: there is no such rule or file, or the file is damaged or of another network.
    """
    check_rule(rule, INCEPTION_RULES)
    variables = load(Path(path) if path is not None else find_weights())
    apply = functools.partial(apply_to_images, Inception(), rule)
    return Extractor("inception", rule, content_digest(variables), apply, variables)


def find_weights() -> Path:
    """The weights in PyTorch's cache folder; raises InputError if they are not there."""
    # As torch.hub finds the folder.
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("TORCH_HOME") or os.path.join(cache, "torch")
    folder = Path(os.path.expanduser(home), "hub", "checkpoints")
    for name in FILES:
        if (folder / name).is_file():
            return folder / name
    raise InputError(
        f"{folder} has no weights of Inception ({' or '.join(FILES)}); download one of them "
        "(torch-fidelity and pytorch-fid say from where), or set its path"
    )


def apply_to_images(model: Inception, rule: str, variables: Variables, images: Array) -> Taps:
    """All taps of images uint8 [b, h, w, c], see `Inception`."""
    pixels = inception_pixels(images, rule, SIZE, model.dtype)
    # Flax says any of what apply returns.
    taps: Any = model.apply(variables, pixels)
    return taps


def load(path: Path, model: Inception | None = None) -> Variables:
    """The network's variables from a state dict, with batch norms folded into the convolutions.

    `model` is the published network by default; variables are of its dtype. Errors are those of
    `inception`.
    """
    model = Inception() if model is None else model
    is_safetensors = path.suffix == ".safetensors" and path.is_file()
    tensors = open_file(path, integers=True) if is_safetensors else open_torch_file(path)
    arrays = _folded({name: tensor.view() for name, tensor in tensors.items()}, path)
    image = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    mappings = tensor_mappings(jax.eval_shape(model.init, jax.random.key(0), image), _RULES)
    check_fit(mappings, {name: array.shape for name, array in arrays.items()}, path)
    ours = {}
    for name, mapping in mappings.items():
        if not np.isfinite(arrays[name]).all():
            raise InputError(
                f"{path}: the tensor {name} has NaN or infinity; download or copy the file again"
            )
        (ours[mapping.paths[0]],) = mapping.to_ours(arrays[name].astype(model.dtype))
    return flax.traverse_util.unflatten_dict(
        {path: np.ascontiguousarray(array) for path, array in ours.items()}, sep="."
    )


def _folded(tensors: Mapping[str, np.ndarray], where: Path) -> dict[str, np.ndarray]:
    # In float64, so that folding costs no accuracy.
    layers, folded = set(), {}
    for name, array in tensors.items():
        if match := re.match(r"(.+)\.(?:conv|bn)\.", name):
            layers.add(match[1])
        else:
            folded[name] = array
    for layer in sorted(layers):
        kernel = tensors.get(f"{layer}.conv.weight")
        norm = [tensors.get(f"{layer}.bn.{part}") for part in _NORM]
        shapes = {None if part is None else part.shape for part in norm}
        if kernel is None or shapes != {kernel.shape[:1]}:
            raise InputError(
                f"{where}: the convolution and the batch norm of {layer} are missing or differ in "
                "width; the weights are incomplete or of another model, download them again"
            )
        # norm(conv(x)) = (w * x - mean) * scale + bias, with scale = weight / sqrt(var + epsilon).
        scale, bias, mean, var = (np.asarray(part, np.float64) for part in norm)
        scale = scale / np.sqrt(var + _EPSILON)
        folded[f"{layer}.conv.weight"] = kernel * scale[:, None, None, None]
        folded[f"{layer}.conv.bias"] = bias - mean * scale
    return folded
