"""From imports and runs to diffusers' layout."""

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from tqdm import tqdm

from imagen_ft.models.latent_unet import LatentUNet
from imagen_ft.weights import hub
from imagen_ft.weights.importing import HEADER, MODEL_INDEX, SMALL_PATTERNS, check_schedulers
from imagen_ft.weights.loading import STORED, load_checkpoint, open_checkpoint
from imagen_ft.weights.lora_file import write_lora
from imagen_ft.weights.pipeline_parts import (
    FILES,
    MANIFEST,
    PARTS,
    RUN,
    SMALL_PARTS,
    NoSuchPart,
    Part,
    PartLocation,
    locate,
    manifest_parts,
    open_part,
)
from imagen_ft.weights.tensor_rules import layout_of
from imagen_ft.weights.unet_config import unet_config
from launch.errors import InputError
from launch.files import is_local, parse_object, read_object, write_atomic
from launch.runtime.atomic_folder import atomic_folder, check_target
from launch.runtime.checkpoints.safetensors_io import Weights, write_file, write_model
from launch.runtime.checkpoints.tensor_mapping import tensor_mappings
from launch.runtime.run import Run

DTYPES = ("float32", "float16", "bfloat16")
_VARIANT_DTYPES = {"fp16": "float16", "bf16": "bfloat16"}

# Writes one part into the folder that it is given.
_Writer = Callable[[Path], None]
# Gives a tensor of the files by its name, as the type that is asked for.
_Read = Callable[[str, np.dtype], np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Form:
    """How weights are written; without either an import is written as it was."""

    variant: str | None
    dtype: str | None

    @property
    def as_imported(self) -> bool:
        return self.variant is None and self.dtype is None

    @property
    def numbers(self) -> np.dtype:
        return jnp.dtype(self.dtype or _VARIANT_DTYPES.get(self.variant or "", "float32"))


def export_weights(
    source: str,
    target: epath.PathLike,
    pipeline: str | None = None,
    variant: str | None = None,
    dtype: str | None = None,
) -> None:
    """Writes weights in diffusers' layout.

    An import is written as it was, byte for byte, unless `variant` or `dtype` ask for another form.
    A run's U-Net gets a `config.json` made from its fields; of a run with `config.lora` the file
    of its adapters is all that is written.

    Args:
        source: an imported folder, or a run directory of imagen_ft.finetune.
        target: a local folder that is empty or not there.
        pipeline: a folder, import or repository with what `source` lacks: text encoder, tokenizer,
            schedulers, model_index.json. With them diffusers' pipelines load `target`.
        variant: 'fp16' or 'bf16': part of the files' names, and their type where `dtype` is None.
        dtype: 'float32', 'float16' or 'bfloat16'; for a run float32 where both are None.

    Raises:
        InputError: anything is wrong with the source, the pipeline or the target, or diffusers has
            no such model; nothing is written.
    """
    if not is_local(target):
        raise InputError(f"{target}: safetensors are written to local folders; name one with --to")
    if variant not in (None, *_VARIANT_DTYPES):
        raise InputError(f"--variant={variant}: known are {', '.join(_VARIANT_DTYPES)}")
    target = epath.Path(target)
    check_target(target)
    form = _Form(variant, dtype)
    locations = _locations(source)
    run = _adapted(locations)
    if run is not None:
        if pipeline:
            raise InputError("--pipeline: a run with config.lora is exported as adapters alone")
        with atomic_folder(target) as folder:
            write_lora(run, Path(folder), form.numbers)
        return
    writers = {
        name: _make_writer(PARTS[name], location, form) for name, location in locations.items()
    }
    lenders = [epath.Path(source) / "source"] + ([_lender(pipeline)] if pipeline else [])
    if pipeline and "text_encoder" not in writers:
        if "unet" not in locations:
            raise InputError(
                f"--pipeline={pipeline} is for a U-Net, which {source} has not: leave it out"
            )
        writers |= _borrow_text_encoder(pipeline, locations["unet"], form)
    small = _small_files(lenders)
    index = small.pop(MODEL_INDEX, None)
    if index is not None:
        components = parse_object(index, MODEL_INDEX)
        index = _without_missing(index, set(writers) | {name.partition("/")[0] for name in small})
        if "unet" in locations:
            _check_pipeline(PARTS["unet"], locations["unet"], components, pipeline or source)
    elif pipeline:
        raise InputError(f"--pipeline={pipeline} has no {MODEL_INDEX}: name a pipeline's folder")
    with atomic_folder(target) as folder:
        for name, write in writers.items():
            (folder / name).mkdir()
            write(Path(folder / name))
        for name, data in small.items():
            (folder / name).parent.mkdir(exist_ok=True)
            write_atomic(folder / name, data)
        if index is not None:
            write_atomic(folder / MODEL_INDEX, index)


def _adapted(locations: Mapping[str, PartLocation]) -> Run | None:
    """The run, where it holds adapters."""
    if "unet" not in locations or locations["unet"].kind != RUN:
        return None
    run = Run.open(locations["unet"].folder)
    return run if run.config.get("lora") else None


def _locations(source: str) -> dict[str, PartLocation]:
    root = epath.Path(source)
    if (root / MANIFEST).exists():
        return {name: locate(root, name) for name in manifest_parts(root)}
    if not root.exists():
        raise InputError(f"{source}: there is no such folder; name an import or a run")
    location = locate(root, "unet")
    if location.kind != RUN:
        raise InputError(f"{source} is neither an imported folder nor a run: name one to export")
    return {"unet": location}


def _make_writer(part: Part, location: PartLocation, form: _Form) -> _Writer:
    """Checks what can be checked before anything is written."""
    model, shapes = open_checkpoint(part, location)
    copies = location.root / "source" / part.name
    if location.kind != RUN and form.as_imported:
        files = manifest_parts(location.root)[part.name]["files"]
        return lambda folder: _write_as_imported(part, location, files, copies, folder)
    if location.kind == RUN:
        size = Run.open(location.folder).config.stage.size
        config = json.dumps(unet_config(model, shapes, size, location.folder), indent=2).encode()
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
    for name, digest in files.items():
        if write_file(folder / name, (copies / f"{name}{HEADER}").read_bytes(), read) != digest:
            raise InputError(
                f"{location.root}: {part.name}/{name} is not what was imported; import it again"
            )
    for path in copies.iterdir():
        if not path.name.endswith(HEADER):
            write_atomic(folder / path.name, path.read_bytes())


def _reader(part: Part, location: PartLocation, total: int) -> _Read:
    """Loads the parameters; what it returns reads them one by one, with a progress bar."""
    model, params = load_checkpoint(part, location, STORED)
    layout = layout_of(model)
    mappings = tensor_mappings(params, layout.rules)
    aliases = layout.aliases(mappings)
    arrays = flax.traverse_util.flatten_dict(params, sep=".")
    bar = tqdm(total=total, desc=part.name, unit=" numbers", unit_scale=True, disable=None)

    def read(name: str, dtype: np.dtype) -> np.ndarray:
        if name in layout.counters:
            rows = mappings[layout.counters[name]].file_shape[0]
            return np.arange(rows, dtype=dtype)[None]
        array = mappings[aliases.get(name, name)].to_file(arrays)
        with np.errstate(over="ignore"):
            converted = array.astype(dtype, copy=False)
        if dtype == np.float16 and array.dtype != dtype and np.isinf(converted).any():
            raise InputError(f"{name} of {location.folder} does not fit float16: export it as bf16")
        bar.update(array.size)
        return converted

    return read


def _with_dtype(config: bytes, dtype: np.dtype) -> bytes:
    """Whatever type the files have, transformers reads them as the one that the config names."""
    table = parse_object(config, "config.json")
    fields = {"dtype", "torch_dtype"} & table.keys()
    if not fields:
        return config
    table.update(dict.fromkeys(fields, dtype.name))
    return (json.dumps(table, indent=2) + "\n").encode()


def _lender(pipeline: str) -> epath.Path:
    """The folder of a pipeline's small files."""
    root = epath.Path(pipeline)
    if not root.exists():
        locate(pipeline, "scheduler")  # says what is wrong with the name
        root = epath.Path(hub.fetch(pipeline, SMALL_PATTERNS))
    return root / "source" if (root / MANIFEST).exists() else root


def _borrow_text_encoder(pipeline: str, unet: PartLocation, form: _Form) -> dict[str, _Writer]:
    part, faults = PARTS["text_encoder"], []
    model, shapes = open_checkpoint(PARTS["unet"], unet)
    if isinstance(model, LatentUNet):
        raise InputError(
            f"{unet.folder} is of Stable Diffusion, which takes nothing of --pipeline={pipeline}: "
            "import the whole pipeline, and export that"
        )
    width = shapes["encoder_hid_proj"]["kernel"].shape[0]
    for variant in dict.fromkeys((form.variant, None, *_VARIANT_DTYPES)):
        try:
            location = locate(pipeline, part.name, variant)
            config = read_object(location.folder / "config.json")
            config = config.get("imported", {}).get("config", config)
            if config.get("d_model") != width:
                raise InputError(
                    f"{unet.folder} was trained with text states {width} wide, the text encoder of "
                    f"{pipeline} has {config.get('d_model')}: name the pipeline with its encoder"
                )
            if location.kind != FILES:
                return {part.name: _make_writer(part, location, _Form(None, None))}
            weights = open_part(location.folder, part, variant)[2]
        except NoSuchPart:
            return {}  # pipelines of diffusers work without: they take embeddings
        except InputError as error:
            faults.append(error)
            continue
        return {part.name: functools.partial(_copy, weights)}
    raise faults[0]


def _copy(weights: Weights, folder: Path) -> None:
    for name in ("config.json", weights.index, *weights.files):
        if name:
            shutil.copyfile(weights.folder / name, folder / name)


def _small_files(lenders: list[epath.Path]) -> dict[str, bytes]:
    """The small files of a pipeline by name; each folder from the first that has it."""
    contents: dict[str, bytes] = {}
    for root in lenders:
        lent = {name.partition("/")[0] for name in contents}
        if MODEL_INDEX not in lent and (root / MODEL_INDEX).exists():
            contents[MODEL_INDEX] = (root / MODEL_INDEX).read_bytes()
        for part in SMALL_PARTS:
            if part not in lent and (root / part).exists():
                for path in sorted((root / part).iterdir()):
                    if not path.is_dir():
                        contents[f"{part}/{path.name}"] = path.read_bytes()
        check_schedulers(root)
    return contents


def _without_missing(index: bytes, parts: set[str]) -> bytes:
    """The index of a pipeline, with null for what is not there (the safety checker)."""
    table = parse_object(index, MODEL_INDEX)
    components = {n for n, value in table.items() if isinstance(value, list) and any(value[:1])}
    if components <= parts:
        return index
    table.update({name: [None, None] for name in components - parts})
    return (json.dumps(table, indent=2) + "\n").encode()


def _check_pipeline(
    part: Part, location: PartLocation, index: Mapping[str, Any], pipeline: str
) -> None:
    """Whether a pipeline can draw with a U-Net."""
    model, shapes = open_checkpoint(part, location)
    name = index.get("_class_name", "")
    if isinstance(model, LatentUNet) or name.startswith("StableDiffusion"):
        if not isinstance(model, LatentUNet) or not name.startswith("StableDiffusion"):
            raise InputError(
                f"{pipeline} is of the class {name}, but {location.folder} is a "
                f"{type(model).__name__}: name the pipeline of these weights with --pipeline"
            )
        return
    if ("SuperResolution" in name) != model.noise_level:
        kind = "a super-resolution model" if model.noise_level else "a base model"
        raise InputError(
            f"{pipeline} is of the class {name}, but {location.folder} is {kind}: "
            "name the pipeline of that stage with --pipeline"
        )
    channels = shapes["conv_in"]["kernel"].shape[2] // (2 if model.noise_level else 1)
    if model.out_channels != 2 * channels:
        raise InputError(
            f"{location.folder} predicts {model.out_channels} channels; diffusers' {name} needs "
            f"{2 * channels}, eps and the variance: export it without --pipeline"
        )
