"""Writes one part of an import or a run in diffusers' layout."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from tqdm import tqdm

from imagen_ft.models.latent_unet import LatentUNet
from imagen_ft.weights.importing import HEADER
from imagen_ft.weights.latent_unet_config import latent_unet_config
from imagen_ft.weights.loading import STORED, load_checkpoint, open_checkpoint
from imagen_ft.weights.pipeline_parts import RUN, Part, PartLocation, manifest_parts
from imagen_ft.weights.tensor_rules import layout_of
from imagen_ft.weights.unet_config import unet_config
from launch.errors import InputError
from launch.files import parse_object, write_atomic
from launch.runtime.checkpoints.safetensors_io import write_file, write_model
from launch.runtime.checkpoints.tensor_mapping import tensor_mappings
from launch.runtime.run import Run

DTYPES = ("float32", "float16", "bfloat16")
VARIANT_DTYPES = {"fp16": "float16", "bf16": "bfloat16"}

# Writes one part into a folder that exists.
Writer = Callable[[Path], None]
# Returns a tensor by its name in the files, as the given type.
Read = Callable[[str, np.dtype], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Form:
    """How weights are written; with neither field, an import is written as it was."""

    variant: str | None
    dtype: str | None

    @property
    def as_imported(self) -> bool:
        """Whether to write the same bytes as were imported."""
        return self.variant is None and self.dtype is None

    @property
    def numbers(self) -> np.dtype:
        """The type of the numbers, unless files are written as imported."""
        return jnp.dtype(self.dtype or VARIANT_DTYPES.get(self.variant or "", "float32"))


def make_writer(part: Part, location: PartLocation, form: Form) -> Writer:
    """A writer of a part of an import or a run; everything is checked now, before it writes.

    Raises `InputError` if it is not a model of this kind, or diffusers has no such model.
    """
    # 1. The same bytes as imported.
    model, shapes = open_checkpoint(part, location)
    copies = location.root / "source" / part.name
    if location.kind != RUN and form.as_imported:
        files = manifest_parts(location.root)[part.name]["files"]
        return lambda folder: _write_as_imported(part, location, files, copies, folder)
    # 2. Another form: make the config, then plan names, shapes and types of the tensors.
    if location.kind == RUN:
        size = Run.open(location.folder).config.stage.size
        if isinstance(model, LatentUNet):
            table = latent_unet_config(model, shapes, size)
        else:
            table = unet_config(model, shapes, size, location.folder)
        config = json.dumps(table, indent=2).encode()
    else:
        config = _with_dtype((copies / "config.json").read_bytes(), form.numbers)
    mappings = tensor_mappings(shapes, layout_of(model).rules)
    tensors = {name: (mapping.file_shape, form.numbers) for name, mapping in mappings.items()}

    def write(folder: Path) -> None:
        read = _reader(part, location, sum(leaf.size for leaf in jax.tree.leaves(shapes)))
        write_model(folder, part.stem, form.variant, tensors, read)
        write_atomic(folder / "config.json", config)

    return write


def _write_as_imported(
    part: Part, location: PartLocation, files: Mapping[str, str], copies: epath.Path, folder: Path
) -> None:
    _, shapes = open_checkpoint(part, location)
    read = _reader(part, location, sum(leaf.size for leaf in jax.tree.leaves(shapes)))
    # The copied headers fix the order of the tensors and their types, so the checksums must match.
    for name, digest in files.items():
        if write_file(folder / name, (copies / f"{name}{HEADER}").read_bytes(), read) != digest:
            raise InputError(
                f"{location.root}: {part.name}/{name} is not what was imported; import it again"
            )
    # Configs and the index are copies.
    for path in copies.iterdir():
        if not path.name.endswith(HEADER):
            write_atomic(folder / path.name, path.read_bytes())


def _reader(part: Part, location: PartLocation, total: int) -> Read:
    # Loads all parameters; `read` then returns them one by one, with a progress bar.
    model, params = load_checkpoint(part, location, STORED)
    layout = layout_of(model)
    mappings = tensor_mappings(params, layout.rules)
    aliases = layout.aliases(mappings)
    arrays = flax.traverse_util.flatten_dict(params, sep=".")
    bar = tqdm(total=total, desc=part.name, unit=" numbers", unit_scale=True, disable=None)

    def read(name: str, dtype: np.dtype) -> np.ndarray:
        if name in layout.counters:
            # Not a parameter: the file counts rows, so it can be made again.
            rows = mappings[layout.counters[name]].file_shape[0]
            return np.arange(rows, dtype=dtype)[None]
        array = mappings[aliases.get(name, name)].to_file(arrays)
        # An overflow becomes inf; the check below reports it with the tensor's name.
        with np.errstate(over="ignore"):
            converted = array.astype(dtype, copy=False)
        if dtype == np.float16 and array.dtype != dtype and np.isinf(converted).any():
            raise InputError(f"{name} of {location.folder} does not fit float16; export it as bf16")
        bar.update(array.size)
        return converted

    return read


def _with_dtype(config: bytes, dtype: np.dtype) -> bytes:
    # transformers loads files as the type that their config names, whatever type they have.
    table = parse_object(config, "config.json")
    fields = {"dtype", "torch_dtype"} & table.keys()
    if not fields:
        return config
    table.update(dict.fromkeys(fields, dtype.name))
    return (json.dumps(table, indent=2) + "\n").encode()
