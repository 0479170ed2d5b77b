"""Parts of a pipeline, in whatever a path stands for: diffusers' layout, an import, a run."""

import dataclasses
import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from imagen_ft.weights import hub
from imagen_ft.weights.autoencoder_config import build_autoencoder
from imagen_ft.weights.clip_text_config import MODEL_TYPE, build_clip_text
from imagen_ft.weights.latent_unet_config import build_latent_unet, is_latent
from imagen_ft.weights.t5_config import build_t5
from imagen_ft.weights.tensor_rules import layout_of
from imagen_ft.weights.unet_config import build_unet
from launch.errors import InputError
from launch.files import cache_folder, is_local, read_object, sha256, write_atomic
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
from launch.runtime.run import STAGE, Run, kind_of

# Written last into an imported folder; names what it was made of.
MANIFEST = "weights.json"
# Folders of a pipeline without weights of ours, kept as they are.
SMALL_PARTS = (
    "scheduler",
    "image_noising_scheduler",
    "tokenizer",
    "tokenizer_2",
    "feature_extractor",
)


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a pipeline that has weights.

    Attributes:
        name: its folder.
        stem: of its files' names.
        build: from the content of config.json and its path to the model and its shapes.
    """

    name: str
    stem: str
    build: Callable[[Mapping[str, Any], Any], tuple[Any, Any]]


def _build_text_encoder(config: Mapping[str, Any], where: Any) -> tuple[Any, Any]:
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
# The files that tell a part's own folder from others.
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
    """A path has not this part, but may have others."""


@dataclasses.dataclass(frozen=True)
class PartLocation:
    """Where a part is.

    Attributes:
        kind: FILES, IMPORTED or RUN.
        folder: FILES: with the part's files; otherwise a run directory.
        root: the folder that was named; of a repository, its local copy.
    """

    kind: str
    folder: epath.Path
    root: epath.Path


def manifest_parts(root: epath.Path) -> dict[str, Any]:
    """What an import says of its parts, by name.

    Raises:
        InputError: its manifest is damaged.
    """
    parts = read_object(root / MANIFEST).get("parts")
    if not isinstance(parts, dict):
        raise InputError(f"{root / MANIFEST}: no manifest of an import; import it again")
    return parts


def locate(path: epath.PathLike, part: str, variant: str | None = None) -> PartLocation:
    """Finds a part; fetches its files (of that variant) where the path is a repository.

    Raises:
        InputError: there is no such folder, or it has no such part.
    """
    root = epath.Path(path)
    if not root.exists():
        return _fetch(os.fspath(path), part, variant)
    if root.is_file():
        raise InputError(
            f"{root} is a file; name a folder in diffusers' layout: its from_single_file and "
            "save_pretrained make one of such a file"
        )
    if (root / MANIFEST).exists():
        if part in PARTS and part not in manifest_parts(root):
            raise NoSuchPart(
                f"{root} was imported without its {part}: import that into a folder of its own "
                f"(--part={part})"
            )
        return PartLocation(IMPORTED, root / part, root)
    config = read_object(root / "config.json") if (root / "config.json").exists() else {}
    if part in PARTS and config.get("imported", {}).get("part") == part:
        return PartLocation(IMPORTED, root, root.parent)
    if part == "unet" and kind_of(config) == STAGE:
        return PartLocation(RUN, root, root)
    folders = [root / part]
    if part not in PARTS or part in _parts_of(config):
        folders.append(root)
    for folder in folders if "imported" not in config and kind_of(config) != STAGE else ():
        if any((folder / mark).exists() for mark in _MARKS[part]):
            if not is_local(folder):
                raise InputError(f"{folder}: safetensors are read from local folders; copy it")
            return PartLocation(FILES, folder, root)
    raise NoSuchPart(
        f"{root} has no {part}: it is neither a pipeline's folder, nor the part's own "
        f"({' or '.join(_MARKS[part])} is missing or of another part), nor an import that was "
        "finished, nor a run that trained it"
    )


def _parts_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Whose config it may be; only diffusers' names a class."""
    if "_class_name" not in config:
        return ("text_encoder", "text_encoder_2")
    return ("vae",) if config["_class_name"] == "AutoencoderKL" else ("unet",)


def _fetch(name: str, part: str, variant: str | None) -> PartLocation:
    if not is_local(name) or not hub.is_id(name):
        raise InputError(
            f"{name}: there is no such folder; name one, or a repository of the Hub as owner/name"
        )
    # Auto-encoders have repositories of their own, whose files are in no folder.
    prefixes = (f"{part}/", "") if part == "vae" else (f"{part}/",)
    if part in SMALL_PARTS:
        patterns = [f"{part}/*"]
    else:
        stem = PARTS[part].stem
        files = ("config.json", *file_names(stem, variant))
        patterns = [prefix + file for prefix in prefixes for file in files]
    root = epath.Path(hub.fetch(name, patterns))
    prefix = next((p for p in prefixes if (root / p / "config.json").exists()), prefixes[0])
    folder = root / prefix
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    if not set(names) & set(_MARKS[part]):
        raise NoSuchPart(f"{name} has no {part}: name a repository of diffusers' layout")
    if part in PARTS and not any(file in names for file in file_names(stem, variant)[:2]):
        names_there = [file.removeprefix(prefix) for file in hub.file_names(name)]
        choose_file(names_there, stem, variant, f"{name}/{prefix}".rstrip("/"))
    return PartLocation(FILES, folder, root)


def open_part(
    folder: epath.Path, part: Part, variant: str | None
) -> tuple[Any, dict[str, TensorMapping], Weights]:
    """Opens files in diffusers' layout and checks that they fit their config.json.

    Returns:
        The model, its parameters by the files' names, the files.

    Raises:
        InputError: anything is missing, damaged, or of a model that is not implemented.
    """
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
        advice="use the config.json of these weights",
        aliases=aliases,
    )
    for alias, name in aliases.items():
        if {alias, name} <= weights.tensors.keys():
            first, second = weights.tensors[name], weights.tensors[alias]
            if first.dtype != second.dtype or not _same_bytes(first.view(), second.view()):
                raise InputError(
                    f"{local}: {alias} and {name} are one matrix in this model, but they differ "
                    "in the file; download it again"
                )
    for name, rows in layout.counters.items():
        count = np.arange(mappings[rows].file_shape[0])[None]
        if name in weights.tensors and not np.array_equal(weights.tensors[name].view(), count):
            raise InputError(
                f"{local}: {name} must count from 0 to {count.size - 1} in this model; download it "
                "again"
            )
    return model, mappings, weights


def _same_bytes(first: np.ndarray, second: np.ndarray) -> bool:
    return np.array_equal(first.view(np.uint8), second.view(np.uint8))


def part_folder(path: epath.PathLike, part: str) -> Path:
    """A local folder with a part's files, of an import with the verbatim copies of the small ones.

    Args:
        path: a pipeline's folder, the part's own, an import, or a repository of the Hub.
        part: one of `PARTS` or `SMALL_PARTS`.

    Raises:
        InputError: there is none, or it cannot be fetched.
    """
    location = locate(path, part)
    if location.kind == FILES:
        return Path(location.folder)
    copies = location.root / "source" / part
    if location.kind == RUN or not copies.exists():
        raise NoSuchPart(f"{path} holds no files of a {part}: name the pipeline that has them")
    return Path(copies) if is_local(copies) else _local_copy(copies, location.root / MANIFEST)


def _local_copy(folder: epath.Path, manifest: epath.Path) -> Path:
    """Small files of a remote import, copied once for each content of its manifest."""
    target = cache_folder("source") / sha256(manifest)[:32] / folder.name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
            whole = Path(temporary, folder.name)
            whole.mkdir()
            for path in folder.iterdir():
                write_atomic(whole / path.name, path.read_bytes())
            if not target.exists():  # another process may have been faster
                whole.rename(target)
    return target


def digest(path: epath.PathLike, part: str, variant: str | None = None) -> str:
    """Digest of a part: equal files, imported or not, or equal trained weights, have equal ones.

    Args:
        path: as for `part_folder`, or a run directory.
        part: one of `PARTS` or `SMALL_PARTS`.
        variant: of the weights.

    Raises:
        InputError: there is none.
    """
    location = locate(path, part, variant)
    if part in PARTS and location.kind == RUN:
        return Run.open(location.folder).digest()
    folder = part_folder(path, part)
    if location.kind == IMPORTED and part in PARTS:
        # Those of the files that it was imported from: a cache of either is one of both.
        files = {"config.json": sha256(folder / "config.json")}
        files |= dict(sorted(manifest_parts(location.root)[part]["files"].items()))
        return _digest_of(files)
    if part in PARTS:
        weights = open_weights(folder, PARTS[part].stem, variant, integers=True)
        names = ["config.json", *weights.files]
    else:
        names = sorted(file.name for file in folder.iterdir() if file.is_file())
    return _digest_of({name: sha256(folder / name) for name in names})


def _digest_of(files: dict[str, str]) -> str:
    lines = "".join(f"{name} {digest}\n" for name, digest in files.items())
    return hashlib.sha256(lines.encode()).hexdigest()
