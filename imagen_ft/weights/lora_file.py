"""Reads and writes low-rank adapters of U-Nets as diffusers' files (LoRA, Hu et al. 2021).

A file holds `MODULE.lora_A.weight` [rank, in] and `MODULE.lora_B.weight` [out, rank], with or
without the prefix 'unet.'. Their product is scaled by alpha / rank, where alpha is `MODULE.alpha`,
or the one in the file's metadata, or the rank; or by alpha / sqrt(rank) if the metadata says so.
Older files say `lora.down` and `lora.up`.
"""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np
from etils import epath
from jaxtyping import PyTree

from imagen_ft.diffusion.from_config import make_denoiser
from imagen_ft.models.latent_unet import LatentUNet
from imagen_ft.models.unet import UNet
from imagen_ft.weights.tensor_rules import layout_of
from launch.errors import InputError
from launch.runtime.checkpoints.safetensors_header import make_header, parse_header, read_header
from launch.runtime.checkpoints.safetensors_io import check_finite, open_file, write_file
from launch.runtime.checkpoints.tensor_mapping import Rules, TensorMapping, tensor_mappings
from launch.runtime.layers.lora import Lora
from launch.runtime.run import Run

FILE = "pytorch_lora_weights.safetensors"
_METADATA = "lora_adapter_metadata"
_PREFIX = "unet."
_DOWN, _UP, _ALPHA = ".lora_A.weight", ".lora_B.weight", ".alpha"
# From the names in older files to today's, applied in order.
_OLDER = (
    (r"\.processor\.(\w+)_lora\.(down|up)\.", r".\1.lora.\2."),
    (r"\.to_out\.lora\.", r".to_out.0.lora."),
    (r"\.lora\.down\.", ".lora_A."),
    (r"\.lora\.up\.", ".lora_B."),
)


def read_lora(path: epath.PathLike, model: Any, params: PyTree) -> tuple[Lora, PyTree]:
    """The adapters in a safetensors file: how to merge them into a U-Net, and their parameters.

    `up` is multiplied by its alpha / rank. `params` may be shapes only. Raises `InputError` if
    there is no such file, it is damaged, or its adapters fit another network.
    """
    # 1. Read the file, and find the network's layers under the names that it uses.
    path = Path(path)
    arrays = _arrays(path)
    rules = layout_of(_known(model, path)).rules
    kernels = {
        _named(mapping.paths[0], rules): mapping
        for mapping in tensor_mappings(params, rules).values()
        if mapping.paths[0].endswith(".kernel")
    }
    # 2. Check each pair, and bring it into our layout.
    scale_of = _scales(path)
    adapters: dict[tuple[str, ...], np.ndarray] = {}
    for module in [name.removesuffix(_DOWN) for name in arrays if name.endswith(_DOWN)]:
        mapping = kernels.get(module)
        if mapping is None:
            raise InputError(
                f"{path} adapts {module}, which is not a layer of this network; use adapters of "
                "this network"
            )
        down, up = arrays.pop(module + _DOWN), arrays.pop(module + _UP, np.zeros(0))
        # A matrix of rank 0, or a scalar, counts as rank 1 and so fails the check of its shape.
        rank, (outputs, inputs, *window) = max((1, *down.shape[:1])), mapping.file_shape
        for array, shape in (
            (down, (rank, inputs, *window)),
            (up, (outputs, rank, *(1 for _ in window))),
        ):
            if array.shape != shape:
                raise InputError(
                    f"{path}: {module} must have the shape {shape} of this network, got "
                    f"{array.shape}; use adapters of this network"
                )
        scale, ours = scale_of(module, rank, arrays.pop(module + _ALPHA, None)), _module(mapping)
        # [rank, in, *window] to [*window, in, rank], and [out, rank] to [rank, out].
        adapters[(*ours, "down")] = down.transpose(np.argsort(mapping.axes))
        adapters[(*ours, "up")] = up.reshape(outputs, rank).T * np.float32(scale)
    # 3. Anything left over would be ignored silently: refuse it.
    if arrays or not adapters:
        raise InputError(
            f"{path}: its tensor {min(arrays, default='none')} is not an adapter of a U-Net; use a "
            "file with only those"
        )
    # Rank 1 and alpha 1 make Lora's own scale 1: the scales are in `up` already.
    modules = tuple(sorted({path[:-1] for path in adapters}))
    return Lora(1, 1.0, modules), flax.traverse_util.unflatten_dict(adapters)


def write_lora(run: Run, folder: Path, dtype: np.dtype) -> None:
    """Writes the adapters of a run that has `config.lora`, with their scale in `lora_B`.

    The file has no alpha, which readers take to be the rank. Raises `InputError` if the run is
    unfinished or damaged, or diffusers has no such network.
    """
    # 1. Read the run's adapters.
    rules = layout_of(_known(make_denoiser(run.config.stage).model, run.path)).rules
    stored = run.shapes()
    scale = run.config.lora.get("alpha", run.config.lora.rank) / run.config.lora.rank
    adapters = flax.traverse_util.flatten_dict(run.variables(stored)["params"], sep=".")
    # 2. Bring them into the files' layout and names.
    arrays: dict[str, np.ndarray] = {}
    for path in sorted(adapters):
        ours, _, part = path.rpartition(".")
        name = _PREFIX + _named(f"{ours}.kernel", rules)
        array = np.asarray(adapters[path])
        if part == "down":
            # [*window, in, rank] to [rank, in, *window]
            arrays[name + _DOWN] = np.moveaxis(array, (-1, -2), (0, 1))
        else:
            window = (1,) * (adapters[f"{ours}.down"].ndim - 2)
            arrays[name + _UP] = scale * array.T.reshape(*array.T.shape, *window)
    # 3. Write.
    header = make_header({name: (array.shape, dtype) for name, array in arrays.items()})

    def written(name: str, dtype: np.dtype) -> np.ndarray:
        with np.errstate(over="ignore"):
            array = arrays[name].astype(dtype)
        if np.isinf(array).any():
            raise InputError(f"{name} of {run.path} does not fit {dtype}; export it as bfloat16")
        return array

    write_file(folder / FILE, header, written)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    # Tensors by today's names, without the prefix.
    arrays = {}
    for name, tensor in open_file(path).items():
        array = tensor.view().astype(np.float32)
        check_finite(name, tensor, array)
        for pattern, replacement in _OLDER:
            name = re.sub(pattern, replacement, name)
        arrays[name.removeprefix(_PREFIX)] = array
    return arrays


def _scales(path: Path) -> Callable[[str, int, np.ndarray | None], float]:
    # Returns a function of a module's name, rank and own alpha to the scale of its product. The
    # metadata has alphas for endings of modules' names, and one for all others.
    try:
        table = json.loads(parse_header(read_header(path))[1].get(_METADATA, "{}"))
        fields = {name.removeprefix(_PREFIX): value for name, value in table.items()}
        patterns = {end: float(x) for end, x in (fields.get("alpha_pattern") or {}).items()}
        common = float(fields["lora_alpha"]) if "lora_alpha" in fields else None
    except (ValueError, TypeError, AttributeError):
        raise InputError(f"{path}: its metadata is damaged; download the file again") from None
    # Rank-stabilised adapters divide by sqrt(rank) (Kalajdzievski 2023).
    is_stabilised = bool(fields.get("use_rslora"))

    def scale_of(module: str, rank: int, own: np.ndarray | None) -> float:
        others = (alpha for end, alpha in patterns.items() if module.endswith(end))
        alpha = np.asarray(next(others, rank if common is None else common) if own is None else own)
        if alpha.size != 1 or not np.isfinite(alpha).all():
            raise InputError(
                f"{path}: alpha of {module} must be a finite number, got {alpha.tolist()}; use "
                "another file"
            )
        return alpha.item() / (math.sqrt(rank) if is_stabilised else rank)

    return scale_of


def _known(model: Any, where: Any) -> Any:
    # Imagen's Efficient U-Net does not exist in diffusers.
    if not isinstance(model, UNet | LatentUNet):
        raise InputError(
            f"{where}: diffusers' files have no adapters for a {type(model).__name__}; choose a "
            "stage with a UNet"
        )
    return model


def _named(kernel: str, rules: Rules) -> str:
    # The files' name of the module that owns one of our kernels.
    for pattern, replacement in rules:
        kernel = re.sub(pattern, replacement, kernel)
    return kernel.removesuffix(".weight")


def _module(mapping: TensorMapping) -> tuple[str, ...]:
    return tuple(mapping.paths[0].split(".")[:-1])
