"""From diffusers' layout to folders that every task can read; exports restore the same bytes."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

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
from launch.runtime.checkpoints import checkpoint, hub
from launch.runtime.checkpoints.orbax_options import check_path
from launch.runtime.checkpoints.safetensors_header import read_header
from launch.runtime.checkpoints.safetensors_io import Weights
from launch.runtime.checkpoints.tensor_mapping import TensorMapping
from launch.runtime.run_record import write_record

MODEL_INDEX = "model_index.json"
HEADER = ".header"
# The small files of a pipeline, which an import copies unchanged.
SMALL_PATTERNS = (MODEL_INDEX, *(f"{name}/*" for name in SMALL_PARTS))


def import_weights(
    source: str,
    target: epath.PathLike,
    parts: Sequence[str] = (),
    variant: str | None = None,
    origin: str = "",
) -> bool:
    """Imports the weights of a pipeline, keeping their types.

    Each part becomes a finished run directory in `target`, readable by `load_unet`, `load_t5` and
    `Run.variables`. `source/` holds the small files unchanged: with them an export writes the same
    bytes again.

    Args:
        source: a pipeline's folder, a part's own, or a repository of the Hub.
        target: a folder, local or `gs://`, that is empty or does not exist.
        parts: keys of `PARTS`; by default all that the source has.
        variant: 'fp16', 'bf16' or None, for files without a variant in their names.
        origin: what the record names as the source; empty: `source`.

    Returns:
        False if `target` already holds exactly this import.

    Raises:
        InputError: something is wrong with the source or the target; nothing is written.
    """
    # 1. Find the parts and open their files; shapes are checked against each config.json here.
    target, origin = epath.Path(target), origin or source
    locations = _locations(source, parts, variant)
    opened = {
        name: open_part(location.folder, PARTS[name], variant)
        for name, location in locations.items()
    }
    # 2. Check that the parts fit together and that their schedulers are implemented.
    unet = opened["unet"][1] if "unet" in opened else {}
    tensors = {name: mapping.file_shape for name, mapping in unet.items()}
    check_parts({name: model for name, (model, _, _) in opened.items()}, tensors, origin)
    root = _small_files(source, locations)
    check_schedulers(root)
    # 3. Describe the import; equal checksums mean that it is there already.
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
    # 4. Write. The manifest is last: a folder without it is not a finished import.
    check_target(target)
    check_path(target)
    with atomic_folder(target) as folder:
        for name, part in opened.items():
            _import_part(name, *part, folder, origin)
        _copy_small(root, list(locations), folder / "source")
        write_json(folder / MANIFEST, manifest)
    return True


def _locations(source: str, parts: Sequence[str], variant: str | None) -> dict[str, PartLocation]:
    # 1. Locate each part. Those that were asked for must be there; others may be missing.
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
    # 2. Do not silently skip a part that the pipeline claims to have.
    for part, reason in missing:
        if _should_have(source, part):
            raise InputError(f"{reason}; --part={','.join(locations)} leaves it out") from reason
    for location in locations.values():
        if location.kind != FILES:
            raise InputError(
                f"{source} is a run or an import already; choose a folder or repository in "
                "diffusers' layout to import"
            )
    return locations


def _should_have(source: str, part: str) -> bool:
    # Whether a pipeline has a folder for the part, or lists it in its index as not null.
    root = epath.Path(source)
    index = root / MODEL_INDEX
    listed = read_object(index).get(part) if index.exists() else None
    return (root / part).exists() or bool(isinstance(listed, list) and listed and listed[0])


def _small_files(source: str, locations: Mapping[str, PartLocation]) -> Path:
    root = Path(next(iter(locations.values())).root)
    # Of a repository, only the parts have been downloaded so far.
    if not os.path.exists(source):
        root = hub.fetch(source, SMALL_PATTERNS)
    return root


def check_schedulers(root: epath.Path | Path) -> None:
    """Raises `InputError` if a pipeline has a scheduler with settings that are not implemented."""
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
    # 1. A finished run of 0 steps: every task that reads runs can read it.
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
    # 2. What the parameters do not hold: configs, the index, and each file's header (order of the
    # tensors, metadata), for an export of the same bytes.
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
