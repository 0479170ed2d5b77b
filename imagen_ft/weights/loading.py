"""Loads models with their weights, from files tensor by tensor or from checkpoints."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh, Sharding, SingleDeviceSharding
from tqdm import tqdm

from imagen_ft.diffusion.from_config import make_denoiser
from imagen_ft.models.latent_unet import LatentUNet
from imagen_ft.models.t5 import T5Encoder
from imagen_ft.models.unet import UNet
from imagen_ft.weights.pipeline_parts import (
    FILES,
    PARTS,
    RUN,
    Part,
    PartLocation,
    locate,
    open_part,
)
from imagen_ft.weights.tensor_rules import layout_of
from imagen_ft.weights.unet_config import unet_shapes
from launch.errors import InputError
from launch.files import read_object, read_sealed
from launch.runtime.checkpoints.safetensors_io import Weights, check_finite
from launch.runtime.checkpoints.tensor_mapping import TensorMapping
from launch.runtime.devices.mesh import state_shardings
from launch.runtime.run import Run

STORED = "stored"  # dtype: keep the one in the files
# Tensors that are read at a time; transposing them takes longer than reading them.
READERS = 4


def load_part(
    name: str,
    path: epath.PathLike,
    dtype: Any = None,
    mesh: Mesh | None = None,
    variant: str | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Loads a part of a pipeline: the model of the checkpoint's own config, and its parameters.

    The model computes in float32; that of a run, as it was trained.

    Args:
        name: one of `PARTS`.
        path: a pipeline's folder, the part's own, a repository of the Hub ('owner/name', or
            'owner/name@revision'), a folder that `python -m imagen_ft.weights` has imported, or,
            for a U-Net, a run directory of imagen_ft.finetune without adapters.
        dtype: of the parameters; None: float32, 'stored': as in the files.
        mesh: shards them as training does; None: the default device.
        variant: 'fp16', 'bf16' or None, for files without a variant in their names.

    Raises:
        InputError: there is no such part, it is damaged, or it is not implemented.
    """
    return _load(name, object, path, dtype, mesh, variant)


def load_unet(
    path: epath.PathLike, dtype: Any = None, mesh: Mesh | None = None, variant: str | None = None
) -> tuple[UNet, dict[str, Any]]:
    """As `load_part`; call `model.apply({"params": params}, x, t, text, noise_level=None)`."""
    return _load("unet", UNet, path, dtype, mesh, variant)


def load_t5(
    path: epath.PathLike, dtype: Any = None, mesh: Mesh | None = None, variant: str | None = None
) -> tuple[T5Encoder, dict[str, Any]]:
    """As `load_part`; call `model.apply({"params": params}, tokens, mask)`."""
    return _load("text_encoder", T5Encoder, path, dtype, mesh, variant)


def open_model(name: str, path: epath.PathLike, variant: str | None = None) -> tuple[Any, Any]:
    """As `load_part`, but shapes in place of parameters; nothing is loaded."""
    return _open(name, object, path, variant)


def open_t5(path: epath.PathLike, variant: str | None = None) -> tuple[T5Encoder, Any]:
    """As `load_t5`, but shapes in place of parameters; nothing is loaded."""
    return _open("text_encoder", T5Encoder, path, variant)


def open_unet(path: epath.PathLike, variant: str | None = None) -> tuple[UNet, Any]:
    """As `load_unet`, but shapes in place of parameters; nothing is loaded."""
    return _open("unet", UNet, path, variant)


def _open(name: str, kind: type, path: epath.PathLike, variant: str | None) -> tuple[Any, Any]:
    part, location = PARTS[name], locate(path, name, variant)
    if location.kind != FILES:
        model, shapes = open_checkpoint(part, location, variant)
    else:
        config = location.folder / "config.json"
        model, shapes = part.build(read_object(config), config)
    _check_kind(model, kind, location)
    return model, shapes


def _load(
    name: str,
    kind: type,
    path: epath.PathLike,
    dtype: Any,
    mesh: Mesh | None,
    variant: str | None,
) -> tuple[Any, dict[str, Any]]:
    part, location = PARTS[name], locate(path, name, variant)
    if location.kind != FILES:
        # Check before gigabytes are read.
        _check_kind(open_checkpoint(part, location, variant)[0], kind, location)
        return load_checkpoint(part, location, dtype, mesh, variant)
    model, mappings, weights = open_part(location.folder, part, variant)
    _check_kind(model, kind, location)
    return model, read_params(model, mappings, weights, dtype, mesh)


def _check_kind(model: Any, kind: type, location: PartLocation) -> None:
    if not isinstance(model, kind):
        raise InputError(
            f"{location.folder}: the model must be a {kind.__name__} (DeepFloyd IF's kind), got a "
            f"{type(model).__name__}; choose a pipeline of DeepFloyd IF"
        )


def read_params(
    model: Any,
    mappings: Mapping[str, TensorMapping],
    weights: Weights,
    dtype: Any = None,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """Reads parameters a few tensors at a time; each device gets only its own shards.

    `mappings` are by the files' names; `dtype` and `mesh` as in `load_part`. Raises `InputError`
    naming the tensor if a number is NaN, infinite, or out of float16's range.
    """
    second_names = {name: alias for alias, name in layout_of(model).aliases(mappings).items()}

    def read(name: str) -> tuple[str, jax.Array]:
        mapping = mappings[name]
        tensor = weights.tensors.get(name) or weights.tensors[second_names[name]]
        abstract = jax.ShapeDtypeStruct(mapping.shape, _dtype(tensor.dtype, dtype))

        def shard(index: Any) -> np.ndarray:
            # The file is memory-mapped: indexing before copying reads this shard's bytes only.
            values = tensor.view()[mapping.by_file_axis(index)]
            check_finite(name, tensor, values)
            (array,) = mapping.to_ours(values)
            with np.errstate(over="ignore"):
                array = np.array(array, dtype=abstract.dtype, order="C")
            if abstract.dtype == np.float16 and not np.isfinite(array).all():
                raise InputError(
                    f"{tensor.file}: the tensor {name} has numbers outside float16's range; use "
                    "bfloat16 or float32"
                )
            return array

        array = jax.make_array_from_callback(mapping.shape, _sharding(mesh, abstract), shard)
        # Wait, so that at most READERS tensors are held on the host.
        array.block_until_ready()
        bar.update(tensor.nbytes)
        return mapping.paths[0], array

    with (
        tqdm(
            total=weights.nbytes, desc=weights.folder.name, unit="B", unit_scale=True, disable=None
        ) as bar,
        ThreadPoolExecutor(READERS) as pool,
    ):
        return flax.traverse_util.unflatten_dict(dict(pool.map(read, mappings)), sep=".")


def load_checkpoint(
    part: Part,
    location: PartLocation,
    dtype: Any = None,
    mesh: Mesh | None = None,
    variant: str | None = None,
) -> tuple[Any, dict[str, Any]]:
    """As `load_part`, for an import or a run."""
    model, shapes = open_checkpoint(part, location, variant)
    run = Run.open(location.folder)
    stored = run.shapes()["params"]
    structures: list[Any] = [jax.tree.structure(tree) for tree in (stored, shapes)]
    if structures[0] != structures[1]:
        stored = shapes  # restoring below fails, and names the difference

    def abstract(shape: Any, stored: Any) -> jax.ShapeDtypeStruct:
        array = jax.ShapeDtypeStruct(shape.shape, _dtype(stored.dtype, dtype))
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=_sharding(mesh, array))

    variables = run.variables({"params": jax.tree.map(abstract, shapes, stored)})
    return model, variables["params"]


def open_checkpoint(
    part: Part, location: PartLocation, variant: str | None = None
) -> tuple[Any, Any]:
    """As `open_model`, for an import or a run."""
    if location.kind == RUN:
        return _trained_unet(Run.open(location.folder))
    path = location.folder / "config.json"
    imported = read_sealed(path).get("imported")
    if not isinstance(imported, dict):
        raise InputError(f"{path} does not belong to an import; import the weights again")
    if variant not in (None, imported["variant"]):
        origin = imported["variant"] or "weights without a variant"
        raise InputError(
            f"{location.folder} was imported from {origin}, not {variant}; import that one"
        )
    return part.build(imported["config"], path)


def _trained_unet(run: Run) -> tuple[UNet | LatentUNet, Any]:
    if run.config.get("lora"):
        raise InputError(
            f"{run.path} has adapters of {run.config.init_from} and no whole network; use those "
            "weights, or sample it as the run of a stage"
        )
    model = make_denoiser(run.config.stage).model
    stored = run.shapes()["params"]
    if isinstance(model, LatentUNet):
        return model, stored
    layers = {"encoder_hid_proj", "conv_in", "conv_out"}
    if not isinstance(model, UNet) or not layers <= stored.keys():
        raise InputError(
            f"{run.path} must be a run of DeepFloyd IF's UNet, got a {type(model).__name__}; "
            "choose another run"
        )
    channels = stored["conv_in"]["kernel"].shape[2]
    text_width = stored["encoder_hid_proj"]["kernel"].shape[0]
    # The width of the output tells whether the variance is learned.
    model = model.clone(out_channels=stored["conv_out"]["kernel"].shape[3])
    return model, unet_shapes(model, channels, text_width)


def _dtype(stored: Any, dtype: Any) -> jnp.dtype:
    if dtype is None:
        return jnp.dtype(jnp.float32)
    return jnp.dtype(stored if isinstance(dtype, str) and dtype == STORED else dtype)


def _sharding(mesh: Mesh | None, shape: jax.ShapeDtypeStruct) -> Sharding:
    if mesh is None:
        return SingleDeviceSharding(jax.local_devices()[0])
    return state_shardings(mesh, shape)
