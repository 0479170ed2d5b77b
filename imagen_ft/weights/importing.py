"""From diffusers' layout to folders that every task can read, nothing lost on the way."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from imagen_ft.weights import hub
from imagen_ft.weights.latent_parts import check_parts, is_latent_scheduler, latent_settings
from imagen_ft.weights.loading import STORED, read_params
from imagen_ft.weights.pipeline_parts import (
    FILES,
    MANIFEST,
    PARTS,
    SMALL_PARTS,
    NoSuchPart,
    PartLocation,
    locate,
    manifest_parts,
    open_part,
)
from imagen_ft.weights.scheduler_config import scheduler_settings
from launch.errors import InputError
from launch.files import read_object, sha256, write_atomic, write_json
from launch.runtime.atomic_folder import atomic_folder, check_target
from launch.runtime.checkpoints import checkpoint
from launch.runtime.checkpoints.orbax_options import check_path
from launch.runtime.checkpoints.safetensors_header import read_header
from launch.runtime.checkpoints.safetensors_io import Weights
from launch.runtime.checkpoints.tensor_mapping import TensorMapping
from launch.runtime.run_record import write_record

MODEL_INDEX = "model_index.json"
HEADER = ".header"
# The files of a pipeline that are kept as they are.
SMALL_PATTERNS = (MODEL_INDEX, *(f"{name}/*" for name in SMALL_PARTS))


def import_weights(
    source: str,
    target: epath.PathLike,
    parts: Sequence[str] = (),
    variant: str | None = None,
    origin: str = "",
) -> bool:
    """Imports the weights of a pipeline, in the types that they are stored in.

    `target` then has a finished run directory for each part, whose checkpoint
    `load_unet`, `load_t5` and `Run.variables` read, and in `source/` the small files as
    they are: what an export needs to write the same bytes again.

    Args:
        source: a pipeline's folder, a part's own, or a repository of the Hub.
        target: a folder, local or `gs://`, that is empty or not there.
        parts: of `PARTS`; by default those that the source has.
        variant: 'fp16', 'bf16' or None, the files without a variant in their names.
        origin: what the record shall name; empty is `source`.

    Returns:
        False where `target` already holds this very import.

    Raises:
        InputError: anything is wrong with the source or the target; nothing is written.
    """
    target, origin = epath.Path(target), origin or source
    locations = _locations(source, parts, variant)
    opened = {
        name: open_part(location.folder, PARTS[name], variant)
        for name, location in locations.items()
    }
    unet = opened["unet"][1] if "unet" in opened else {}
    tensors = {name: mapping.file_shape for name, mapping in unet.items()}
    check_parts({name: model for name, (model, _, _) in opened.items()}, tensors, origin)
    root = _small_files(source, locations)
    check_schedulers(root)
    table = {
        name: {
            "files": {file: sha256(weights.folder / file) for file in weights.files},
            "index": weights.index,
            "variant": variant,
        }
        for name, (_, _, weights) in opened.items()
    }
    manifest = {"from": origin, "parts": table}
    if (target / MANIFEST).exists() and manifest_parts(target) == table:
        return False
    check_target(target)
    check_path(target)
    with atomic_folder(target) as folder:
        for name, part in opened.items():
            _import_part(name, *part, folder, origin)
        _copy_small(root, list(locations), folder / "source")
        write_json(folder / MANIFEST, manifest)
    return True


def _locations(source: str, parts: Sequence[str], variant: str | None) -> dict[str, PartLocation]:
    locations: dict[str, PartLocation] = {}
    missing: list[tuple[str, NoSuchPart]] = []
    for part in parts or PARTS:
        try:
            locations[part] = locate(source, part, variant)
        except NoSuchPart as error:
            if parts:
                raise
            missing.append((part, error))
    if not locations:
        raise missing[0][1]
    for part, reason in missing:
        if _should_have(source, part):
            raise InputError(f"{reason}; --part={','.join(locations)} leaves it out") from reason
    for location in locations.values():
        if location.kind != FILES:
            raise InputError(
                f"{source} is a run or an import already; name a folder or repository in "
                "diffusers' layout to import"
            )
    return locations


def _should_have(source: str, part: str) -> bool:
    """Whether a folder without a usable part was to have it: that is not passed over in silence."""
    root = epath.Path(source)
    index = root / MODEL_INDEX
    listed = read_object(index).get(part) if index.exists() else None
    return (root / part).exists() or bool(isinstance(listed, list) and listed and listed[0])


def _small_files(source: str, locations: Mapping[str, PartLocation]) -> Path:
    root = Path(next(iter(locations.values())).root)
    if not os.path.exists(source):
        root = hub.fetch(source, SMALL_PATTERNS)
    return root


def check_schedulers(root: epath.Path | Path) -> None:
    """Checks that the settings of a pipeline's schedulers, if it has any, are implemented.

    Raises:
        InputError: they are not.
    """
    for name in ("scheduler", "image_noising_scheduler"):
        path = root / name / "scheduler_config.json"
        if path.exists():
            config = read_object(path)
            check = latent_settings if is_latent_scheduler(config) else scheduler_settings
            check(config, path)


def _import_part(
    name: str,
    model: Any,
    mappings: Mapping[str, TensorMapping],
    weights: Weights,
    folder: epath.Path,
    source: str,
) -> None:
    params = read_params(model, mappings, weights, STORED)
    (folder / name).mkdir(parents=True)
    config: dict[str, Any] = {
        "part": name,
        "from": source,
        "variant": weights.variant,
        "config": read_object(weights.folder / "config.json"),
    }
    run_name = write_record(folder / name, {"imported": config, "total_steps": 0}, inputs={})
    checkpoint.save_inference(folder / name, run_name, {"params": params})
    copies = folder / "source" / name
    copies.mkdir(parents=True)
    for path in sorted(weights.folder.glob("*.json")):
        if ".index." not in path.name or path.name == weights.index:
            write_atomic(copies / path.name, path.read_bytes())
    for file in weights.files:
        write_atomic(copies / f"{file}{HEADER}", read_header(weights.folder / file))


def _copy_small(root: Path, parts: Sequence[str], target: epath.Path) -> None:
    if not any((root / part).is_dir() for part in parts):
        return  # a part's own folder has no pipeline around it
    paths = [path for name in SMALL_PARTS for path in (root / name).glob("*") if path.is_file()]
    for path in [root / MODEL_INDEX, *sorted(paths)]:
        if path.is_file():
            copy = target / path.relative_to(root).as_posix()
            copy.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(copy, path.read_bytes())
