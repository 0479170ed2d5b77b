"""Finds and opens the parts of a pipeline in diffusers' layout, an import, a run or the Hub."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from imagen_ft.weights.autoencoder_config import build_autoencoder
from imagen_ft.weights.clip_text_config import MODEL_TYPE, build_clip_text
from imagen_ft.weights.latent_unet_config import build_latent_unet, is_latent
from imagen_ft.weights.t5_config import build_t5
from imagen_ft.weights.tensor_rules import layout_of
from imagen_ft.weights.unet_config import build_unet
from launch.errors import InputError
from launch.files import is_local, read_object
from launch.runtime.checkpoints import hub
from launch.runtime.checkpoints.safetensors_io import (
    Weights,
    choose_file,
    file_names,
    open_weights,
)
from launch.runtime.checkpoints.tensor_mapping import (
    TensorMapping,
    check_fit,
    tensor_mappings,
)
from launch.runtime.run import STAGE, kind_of

# Written last into an imported folder, with the checksums of what was imported.
MANIFEST = "weights.json"
# Folders of a pipeline without weights, copied unchanged.
SMALL_PARTS = (
    "scheduler",
    "image_noising_scheduler",
    "tokenizer",
    "tokenizer_2",
    "feature_extractor",
)


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a pipeline that has weights."""

    name: str  # its folder's name, too
    stem: str  # what names of its weight files start with
    # From the content of config.json and its path to the model and its parameters' shapes.
    build: Callable[[Mapping[str, Any], Any], tuple[Any, Any]]


def _build_text_encoder(config: Mapping[str, Any], where: Any) -> tuple[Any, Any]:
    # CLIP's (Stable Diffusion) or T5's (IF); a config of neither fails in `build_t5`.
    build = build_clip_text if config.get("model_type") == MODEL_TYPE else build_t5
    return build(config, where)


def _build_unet(config: Mapping[str, Any], where: Any) -> tuple[Any, Any]:
    return (build_latent_unet if is_latent(config) else build_unet)(config, where)


PARTS = {
    part.name: part
    for part in (
        Part("unet", "diffusion_pytorch_model", _build_unet),
        Part("text_encoder", "model", _build_text_encoder),
        Part("text_encoder_2", "model", _build_text_encoder),
        Part("vae", "diffusion_pytorch_model", build_autoencoder),
    )
}
# Files that mark a folder as a part's own; any one of them is enough.
_TOKENIZER = ("tokenizer_config.json", "tokenizer.json", "spiece.model")
_MARKS = {
    **dict.fromkeys(PARTS, ("config.json",)),
    "tokenizer": _TOKENIZER,
    "tokenizer_2": _TOKENIZER,
    "scheduler": ("scheduler_config.json",),
    "image_noising_scheduler": ("scheduler_config.json",),
    "feature_extractor": ("preprocessor_config.json",),
}
FILES, IMPORTED, RUN = "files", "imported", "run"


class NoSuchPart(InputError):
    """A path lacks this part, but may have others."""


@dataclasses.dataclass(frozen=True)
class PartLocation:
    """Where a part is."""

    kind: str  # FILES, IMPORTED or RUN
    folder: epath.Path  # of the part's files; for IMPORTED and RUN, a run directory
    root: epath.Path  # the folder that was named; for a repository, its local copy


def manifest_parts(root: epath.Path) -> dict[str, Any]:
    """An import's entries about its parts, by name; raises `InputError` if they are damaged."""
    parts = read_object(root / MANIFEST).get("parts")
    if not isinstance(parts, dict):
        raise InputError(
            f"{root / MANIFEST} does not exist, so this import is incomplete; import it again"
        )
    return parts


def locate(path: epath.PathLike, part: str, variant: str | None = None) -> PartLocation:
    """Finds a part. From a repository of the Hub it downloads the part's files of that variant.

    Raises `InputError` if there is no such folder, and `NoSuchPart` if it lacks the part.
    """
    # 1. A repository, or a file that cannot be one.
    root = epath.Path(path)
    if not root.exists():
        return _fetch(os.fspath(path), part, variant)
    if root.is_file():
        raise InputError(
            f"{root} is a file; choose a folder in diffusers' layout, or import a checkpoint of "
            f"Stable Diffusion: python -m imagen_ft.weights --from=diffusers:{root} --to=FOLDER"
        )
    # 2. An import: the whole of it, or the folder of one part.
    if (root / MANIFEST).exists():
        if part in PARTS and part not in manifest_parts(root):
            raise NoSuchPart(
                f"{root} was imported without its {part}; import that into a folder of its "
                f"own (--part={part})"
            )
        return PartLocation(IMPORTED, root / part, root)
    config = read_object(root / "config.json") if (root / "config.json").exists() else {}
    if part in PARTS and config.get("imported", {}).get("part") == part:
        return PartLocation(IMPORTED, root, root.parent)
    # 3. A run that trained a U-Net.
    if part == "unet" and kind_of(config) == STAGE:
        return PartLocation(RUN, root, root)
    # 4. Files in diffusers' layout: the pipeline's folder, or the part's own.
    folders = [root / part]
    if part not in PARTS or part in _parts_of(config):
        folders.append(root)
    for folder in folders if "imported" not in config and kind_of(config) != STAGE else ():
        if any((folder / mark).exists() for mark in _MARKS[part]):
            if not is_local(folder):
                raise InputError(f"{folder}: safetensors need a local folder; copy it")
            return PartLocation(FILES, folder, root)
    raise NoSuchPart(
        f"{root} has no {part}; use a pipeline's folder, a folder of that part (with its own "
        f"{' or '.join(_MARKS[part])}), a finished import, or a run that trained it"
    )


def _parts_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    # Parts that a config.json may belong to. Only diffusers' name a class; transformers' do not.
    if "_class_name" not in config:
        return ("text_encoder", "text_encoder_2")
    return ("vae",) if config["_class_name"] == "AutoencoderKL" else ("unet",)


def _fetch(name: str, part: str, variant: str | None) -> PartLocation:
    if not is_local(name) or not hub.is_id(name):
        raise InputError(
            f"{name}: no such folder; choose one, or a repository of the Hub as owner/name"
        )
    # 1. Ask for as little as possible. Auto-encoders also have repositories of their own, with the
    # files at the top.
    prefixes = (f"{part}/", "") if part == "vae" else (f"{part}/",)
    if part in SMALL_PARTS:
        patterns = [f"{part}/*"]
    else:
        stem = PARTS[part].stem
        files = ("config.json", *file_names(stem, variant))
        patterns = [prefix + file for prefix in prefixes for file in files]
    # 2. The Hub's client reports no error if nothing matches: see what has come.
    root = epath.Path(hub.fetch(name, patterns))
    prefix = next((p for p in prefixes if (root / p / "config.json").exists()), prefixes[0])
    folder = root / prefix
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    if not set(names) & set(_MARKS[part]):
        raise NoSuchPart(f"{name} has no {part}; use a repository in diffusers' layout")
    if part in PARTS and not any(file in names for file in file_names(stem, variant)[:2]):
        # Weights are missing: `choose_file` says which variants there are.
        names_there = [file.removeprefix(prefix) for file in hub.file_names(name)]
        choose_file(names_there, stem, variant, f"{name}/{prefix}".rstrip("/"))
    return PartLocation(FILES, folder, root)


def open_part(
    folder: epath.Path, part: Part, variant: str | None
) -> tuple[Any, dict[str, TensorMapping], Weights]:
    """Opens files in diffusers' layout: the model, its parameters by the files' names, the files.

    Raises `InputError` if something is missing, damaged, not implemented, or does not fit the
    config.json.
    """
    # 1. Build the model of config.json, and compare its shapes with the files'.
    local = Path(folder)
    where = local / "config.json"
    model, shapes = part.build(read_object(where), where)
    layout = layout_of(model)
    weights = open_weights(local, part.stem, variant, integers=bool(layout.counters))
    mappings = tensor_mappings(shapes, layout.rules)
    aliases = layout.aliases(mappings)
    check_fit(
        mappings,
        {n: tensor.shape for n, tensor in weights.tensors.items() if n not in layout.counters},
        local,
        model="the model of its config.json",
        advice="use the config.json that came with these weights",
        aliases=aliases,
    )
    # 2. A tensor under two names must be the same under both: only one of them is read.
    for alias, name in aliases.items():
        if {alias, name} <= weights.tensors.keys():
            first, second = weights.tensors[name], weights.tensors[alias]
            if first.dtype != second.dtype or not _same_bytes(first.view(), second.view()):
                raise InputError(
                    f"{local}: {alias} and {name} must be equal in this model, but differ "
                    "in the file; download it again"
                )
    # 3. Counters are not read: they must be what a model without them assumes.
    for name, rows in layout.counters.items():
        count = np.arange(mappings[rows].file_shape[0])[None]
        if name in weights.tensors and not np.array_equal(weights.tensors[name].view(), count):
            raise InputError(
                f"{local}: {name} must count from 0 to {count.size - 1} in this model; download it "
                "again"
            )
    return model, mappings, weights


def _same_bytes(first: np.ndarray, second: np.ndarray) -> bool:
    # Bytes, since NaN is not equal to itself.
    return np.array_equal(first.view(np.uint8), second.view(np.uint8))
