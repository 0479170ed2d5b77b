"""Low-rank adapters in and out of diffusers' files: of its U-Nets, by their modules' names.

A file holds `MODULE.lora_A.weight` [rank, in] and `MODULE.lora_B.weight` [out, rank], behind
'unet.' or not; what their product is multiplied by is alpha / rank, where alpha is `MODULE.alpha`,
that of the file's metadata, or the rank; or alpha / sqrt(rank) where the metadata says so. Older
files say `lora.down` and `lora.up`.
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
# Names of older files, applied in order.
_OLDER = (
    (r"\.processor\.(\w+)_lora\.(down|up)\.", r".\1.lora.\2."),
    (r"\.to_out\.lora\.", r".to_out.0.lora."),
    (r"\.lora\.down\.", ".lora_A."),
    (r"\.lora\.up\.", ".lora_B."),
)


def read_lora(path: epath.PathLike, model: Any, params: PyTree) -> tuple[Lora, PyTree]:
    """The adapters of a file, to be merged into a U-Net's parameters.

    Args:
        path: a safetensors file.
        model: a U-Net that diffusers has.
        params: of the U-Net, or their shapes.

    Returns:
        How they are merged, and they themselves, `up` multiplied by its own alpha / rank.

    Raises:
        InputError: there is no such file, it is damaged, or its adapters are of another network.
    """
    path = Path(path)
    arrays = _arrays(path)
    rules = layout_of(_known(model, path)).rules
    kernels = {
        _named(mapping.paths[0], rules): mapping
        for mapping in tensor_mappings(params, rules).values()
        if mapping.paths[0].endswith(".kernel")
    }
    scale_of = _scales(path)
    adapters: dict[tuple[str, ...], np.ndarray] = {}
    for module in [name.removesuffix(_DOWN) for name in arrays if name.endswith(_DOWN)]:
        mapping = kernels.get(module)
        if mapping is None:
            raise InputError(
                f"{path} adapts {module}, which is not a layer of this network; name adapters of it"
            )
        down, up = arrays.pop(module + _DOWN), arrays.pop(module + _UP, np.zeros(0))
        # One of rank 0, or of no rank, has a shape that does not fit.
        rank, (outputs, inputs, *window) = max((1, *down.shape[:1])), mapping.file_shape
        for array, shape in (
            (down, (rank, inputs, *window)),
            (up, (outputs, rank, *(1 for _ in window))),
        ):
            if array.shape != shape:
                raise InputError(
                    f"{path}: {module} must have the shape {shape} of this network, got "
                    f"{array.shape}; name adapters of it"
                )
        scale, ours = scale_of(module, rank, arrays.pop(module + _ALPHA, None)), _module(mapping)
        adapters[(*ours, "down")] = down.transpose(np.argsort(mapping.axes))
        adapters[(*ours, "up")] = up.reshape(outputs, rank).T * np.float32(scale)
    if arrays or not adapters:
        raise InputError(
            f"{path}: its tensor {min(arrays, default='none')} is not an adapter of a "
            "U-Net; name a file with only these"
        )
    modules = tuple(sorted({path[:-1] for path in adapters}))
    return Lora(1, 1.0, modules), flax.traverse_util.unflatten_dict(adapters)


def write_lora(run: Run, folder: Path, dtype: np.dtype) -> None:
    """Writes a run's adapters; their products are to be added as they are: alpha is the rank.

    Args:
        run: whose `config.lora` is set, of a U-Net of diffusers' kind.
        folder: exists.
        dtype: of the numbers.

    Raises:
        InputError: the run is not finished or damaged, or diffusers has no such network.
    """
    rules = layout_of(_known(make_denoiser(run.config.stage).model, run.path)).rules
    stored = run.shapes()
    scale = run.config.lora.get("alpha", run.config.lora.rank) / run.config.lora.rank
    adapters = flax.traverse_util.flatten_dict(run.variables(stored)["params"], sep=".")
    arrays: dict[str, np.ndarray] = {}
    for path in sorted(adapters):
        ours, _, part = path.rpartition(".")
        name = _PREFIX + _named(f"{ours}.kernel", rules)
        array = np.asarray(adapters[path])
        if part == "down":
            arrays[name + _DOWN] = np.moveaxis(array, (-1, -2), (0, 1))
        else:
            window = (1,) * (adapters[f"{ours}.down"].ndim - 2)
            arrays[name + _UP] = scale * array.T.reshape(*array.T.shape, *window)
    header = make_header({name: (array.shape, dtype) for name, array in arrays.items()})

    def written(name: str, dtype: np.dtype) -> np.ndarray:
        with np.errstate(over="ignore"):
            array = arrays[name].astype(dtype)
        if np.isinf(array).any():
            raise InputError(f"{name} of {run.path} does not fit {dtype}; export it as bfloat16")
        return array

    write_file(folder / FILE, header, written)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """Tensors of a file by their names of today, without what is before those of a U-Net."""
    arrays = {}
    for name, tensor in open_file(path).items():
        array = tensor.view().astype(np.float32)
        check_finite(name, tensor, array)
        for pattern, replacement in _OLDER:
            name = re.sub(pattern, replacement, name)
        arrays[name.removeprefix(_PREFIX)] = array
    return arrays


def _scales(path: Path) -> Callable[[str, int, np.ndarray | None], float]:
    """What the product of a module is multiplied by: of its name, its rank and its own alpha.

    The file's metadata has alpha by the end of a module's name, and one of all others.
    """
    try:
        table = json.loads(parse_header(read_header(path))[1].get(_METADATA, "{}"))
        fields = {name.removeprefix(_PREFIX): value for name, value in table.items()}
        patterns = {end: float(x) for end, x in (fields.get("alpha_pattern") or {}).items()}
        common = float(fields["lora_alpha"]) if "lora_alpha" in fields else None
    except (ValueError, TypeError, AttributeError):
        raise InputError(f"{path}: its metadata is damaged; download the file again") from None
    # Rank-stabilised adapters, Kalajdzievski 2023.
    is_stabilised = bool(fields.get("use_rslora"))

    def scale_of(module: str, rank: int, own: np.ndarray | None) -> float:
        others = (alpha for end, alpha in patterns.items() if module.endswith(end))
        alpha = np.asarray(next(others, rank if common is None else common) if own is None else own)
        if alpha.size != 1 or not np.isfinite(alpha).all():
            raise InputError(
                f"{path}: alpha of {module} must be a finite number, got {alpha.tolist()}; name "
                "another file"
            )
        return alpha.item() / (math.sqrt(rank) if is_stabilised else rank)

    return scale_of


def _known(model: Any, where: Any) -> Any:
    """A model that diffusers has too."""
    if not isinstance(model, UNet | LatentUNet):
        raise InputError(
            f"{where}: diffusers' files have no adapters for a {type(model).__name__}; "
            "name a stage with a UNet"
        )
    return model


def _named(kernel: str, rules: Rules) -> str:
    """Name in the files of the module that has a kernel of ours."""
    for pattern, replacement in rules:
        kernel = re.sub(pattern, replacement, kernel)
    return kernel.removesuffix(".weight")


def _module(mapping: TensorMapping) -> tuple[str, ...]:
    return tuple(mapping.paths[0].split(".")[:-1])
