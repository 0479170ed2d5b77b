"""Models with their weights: from files tensor by tensor, or from checkpoints."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh, Sharding, SingleDeviceSharding
from tqdm import tqdm

from imagen_ft.diffusion.from_config import make_denoiser
from imagen_ft.models.t5 import T5Encoder
from imagen_ft.models.unet import UNet
from imagen_ft.weights import layout
from imagen_ft.weights.deepfloyd import unet_shapes
from imagen_ft.weights.sources import FILES, PARTS, RUN, Part, Place, locate, open_part
from launch.errors import InputError
from launch.files import read_object
from launch.runtime.checkpoints.safetensors_io import Weights
from launch.runtime.devices.mesh import state_shardings
from launch.runtime.run import Run

STORED = "stored"
# Tensors that are read at a time: changing their layout takes longer than reading them.
READERS = 4


def load_unet(
    path: epath.PathLike, dtype: Any = None, mesh: Mesh | None = None, variant: str | None = None
) -> tuple[UNet, dict[str, Any]]:
    """Loads a U-Net; call it as `model.apply({"params": params}, x, t, text, noise_level=None)`.

    Args:
        path: a pipeline's folder, its unet folder, a repository of the Hub ('owner/name', or
            'owner/name@revision'), a folder that `python -m imagen_ft.weights` has imported, or a
            run directory of imagen_ft.finetune.
        dtype: of the parameters; None is float32, 'stored' what the files have.
        mesh: where they live, sharded as training shards them; None is the default device.
        variant: 'fp16', 'bf16' or None, the files without a variant in their names.

    Returns:
        The model of the checkpoint's own config, computing in float32 (a run's: as it was
        trained), and its parameters.

    Raises:
        InputError: there is no such model, it is damaged, or it is not implemented.
    """
    return _load(PARTS["unet"], path, dtype, mesh, variant)


def load_t5(
    path: epath.PathLike, dtype: Any = None, mesh: Mesh | None = None, variant: str | None = None
) -> tuple[T5Encoder, dict[str, Any]]:
    """Loads a T5 encoder; call it as `model.apply({"params": params}, tokens, mask)`.

    Args:
        path: as for `load_unet`, with the folder text_encoder; no run directory.
        dtype: as for `load_unet`.
        mesh: as for `load_unet`.
        variant: as for `load_unet`.

    Raises:
        InputError: as `load_unet`.
    """
    return _load(PARTS["text_encoder"], path, dtype, mesh, variant)


def _load(
    part: Part, path: epath.PathLike, dtype: Any, mesh: Mesh | None, variant: str | None
) -> tuple[Any, dict[str, Any]]:
    place = locate(path, part.name, variant)
    if place.kind != FILES:
        return load_checkpoint(part, place, dtype, mesh, variant)
    model, entries, weights = open_part(place.folder, part, variant)
    return model, read_params(part, entries, weights, dtype, mesh)


def read_params(
    part: Part,
    entries: dict[str, layout.Entry],
    weights: Weights,
    dtype: Any = None,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """Reads parameters, a few tensors at a time, for each device what it holds.

    Args:
        part: which they are.
        entries: the parameters by the files' names.
        weights: the files.
        dtype: as for `load_unet`.
        mesh: as for `load_unet`.
    """
    second = {name: alias for alias, name in part.aliases.items()}

    def read(name: str) -> tuple[str, jax.Array]:
        entry = entries[name]
        tensor = weights.tensors.get(name) or weights.tensors[second[name]]
        wanted = jax.ShapeDtypeStruct(entry.shape, _dtype(tensor.dtype, dtype))

        def part_of(index: layout.Index) -> np.ndarray:
            held = entry.to_ours(tensor.view()[entry.reference_index(index)])
            return np.array(held, dtype=wanted.dtype, order="C")

        array = jax.make_array_from_callback(entry.shape, _sharding(mesh, wanted), part_of)
        array.block_until_ready()
        bar.update(tensor.nbytes)
        return entry.path, array

    with (
        tqdm(total=weights.nbytes, desc=part.name, unit="B", unit_scale=True, disable=None) as bar,
        ThreadPoolExecutor(READERS) as pool,
    ):
        return layout.unflatten(dict(pool.map(read, entries)))


def load_checkpoint(
    part: Part,
    place: Place,
    dtype: Any = None,
    mesh: Mesh | None = None,
    variant: str | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Loads what was imported or trained.

    Raises:
        InputError: it is damaged, of another variant, or not a model of this kind.
    """
    model, shapes = open_checkpoint(part, place, variant)
    run = Run.open(place.folder)
    stored = run.shapes()["params"]
    if jax.tree.structure(stored) != jax.tree.structure(shapes):
        stored = shapes  # Run.variables will name the difference

    def abstract(leaf: Any, held: Any) -> jax.ShapeDtypeStruct:
        shape = jax.ShapeDtypeStruct(leaf.shape, _dtype(held.dtype, dtype))
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=_sharding(mesh, shape))

    wanted = {"params": jax.tree.map(abstract, shapes, stored)}
    return model, run.variables(wanted)["params"]


def open_checkpoint(part: Part, place: Place, variant: str | None = None) -> tuple[Any, Any]:
    """The model of an import or a run, and the shapes of its parameters; nothing is loaded.

    Raises:
        InputError: it is of another variant, or not a model of this kind.
    """
    if place.kind == RUN:
        return _trained_unet(Run.open(place.folder))
    path = place.folder / "config.json"
    imported = read_object(path)["imported"]
    if variant not in (None, imported["variant"]):
        held = imported["variant"] or "weights without a variant"
        raise InputError(f"{place.folder} was imported from {held}, not {variant}: import that one")
    return part.build(imported["config"], path)


def _trained_unet(run: Run) -> tuple[UNet, Any]:
    model = make_denoiser(run.config.stage).model
    stored = run.shapes()["params"]
    if not isinstance(model, UNet) or not {"encoder_hid_proj", "conv_in", "conv_out"} <= set(
        stored
    ):
        raise InputError(
            f"{run.path} was trained with a {type(model).__name__} that is none of DeepFloyd IF's "
            "kind; name a run of a UNet"
        )
    channels = stored["conv_in"]["kernel"].shape[2]
    text_width = stored["encoder_hid_proj"]["kernel"].shape[0]
    # Whether the variance is learned is best known to the weights.
    model = model.clone(out_channels=stored["conv_out"]["kernel"].shape[3])
    return model, unet_shapes(model, channels, text_width)


def _dtype(stored: Any, dtype: Any) -> jnp.dtype:
    if dtype is None:
        return jnp.dtype(jnp.float32)
    return jnp.dtype(stored if isinstance(dtype, str) and dtype == STORED else dtype)


def _sharding(mesh: Mesh | None, shape: jax.ShapeDtypeStruct) -> Sharding:
    return SingleDeviceSharding(jax.devices()[0]) if mesh is None else state_shardings(mesh, shape)
