"""CLIP's weights in and out: a run that classifiers.zero_shot and transfer read, and back.

An import that is exported to its own layout gives the original files, byte for byte.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np
from etils import epath

from classifiers.clip.tokenizer import TOKENIZER, TOKENIZER_FILES
from classifiers.models import clip
from classifiers.weights import clip_configs
from classifiers.weights.clip_configs import Described
from classifiers.weights.clip_rules import (
    COUNTERS,
    OPEN_CLIP,
    check_layout,
    clip_mappings,
)
from classifiers.weights.preprocessing import (
    CONFIG,
    Preprocessing,
    folder_of,
    local_copy,
    origin,
    read_file,
)
from classifiers.weights.weight_files import STEM
from launch.cli import say
from launch.errors import InputError
from launch.files import is_local, sha256, write_atomic
from launch.runtime.atomic_folder import atomic_folder, check_target
from launch.runtime.checkpoints import checkpoint, hub
from launch.runtime.checkpoints.orbax_options import check_path
from launch.runtime.checkpoints.safetensors_header import read_header
from launch.runtime.checkpoints.safetensors_io import (
    Tensor,
    check_finite,
    open_file,
    open_weights,
    write_file,
    write_model,
)
from launch.runtime.checkpoints.tensor_mapping import check_fit
from launch.runtime.config import plain
from launch.runtime.run import CLIP, Run
from launch.runtime.run_record import write_record

# Copies of the files beside imported weights, and the suffix of copies of weights' headers.
_SOURCE, _HEADER = "source", ".header"
_STEMS = {OPEN_CLIP: "open_clip_model"}


def is_clip(path: epath.PathLike) -> bool:
    """Whether a folder or a repository of transformers has CLIP or SigLIP."""
    folder = folder_of(hub.local(os.fspath(path), (CONFIG,)))
    return read_file(folder / CONFIG).get("model_type") in ("clip", "siglip")


def import_clip(
    source: str,
    target: str,
    layout: str,
    model: str | None = None,
    tokenizer: str | None = None,
) -> None:
    """Writes weights, a .safetensors file, a folder or owner/name, as a finished run of CLIP.

    `model` is a preset to compare the files with; `tokenizer` a folder or owner/name, None
    for that of the weights.

    Raises:
        InputError: anything is wrong with the files; nothing is written.
    """
    # 1. Look at the target first: loading takes minutes.
    check_target(epath.Path(target))
    check_path(target)
    # 2. Open the weights, and learn the model from the files beside them.
    weights = Path(local_copy(source, _STEMS.get(layout, STEM)))
    files, tensors = _open(weights, layout)
    folder = folder_of(weights)
    described = clip_configs.read(folder, tensors, layout, source)
    if model is not None:
        clip_configs.check_preset(described.model, model, source)
    # 3. Load and check every tensor.
    variables = load(tensors, described, layout, source)
    words = _tokenizer_files(tokenizer, folder)
    # Pairs, since names of tensors and files have dots, and cannot be fields of a config.
    whole_numbers = [
        (name, tensor.view().tolist()) for name, tensor in tensors.items() if _is_counter(name)
    ]
    config = {
        "clip": clip.describe(described.model),
        "total_steps": 0,
        "evaluation": described.images.evaluation(described.size),
        "imported": {
            **origin(source, os.fspath(weights)),
            "layout": layout,
            "files": [(path.name, sha256(epath.Path(path))) for path in files],
            "whole_numbers": whole_numbers,
        },
    }
    # 4. Write the run under another name, and rename it when it is whole. Headers are kept, since
    # order and padding of a file's tensors are its own: with them an export is byte for byte.
    with atomic_folder(epath.Path(target)) as made:
        for name, data in words.items():
            (made / TOKENIZER).mkdir(exist_ok=True)
            write_atomic(made / TOKENIZER / name, data)
        copies = made / _SOURCE
        copies.mkdir()
        for path in sorted(folder.glob("*.json")) if weights.is_dir() else []:
            write_atomic(copies / path.name, path.read_bytes())
        for path in files:
            write_atomic(copies / f"{path.name}{_HEADER}", read_header(path))
        run_name = write_record(made, config, inputs={})
        checkpoint.save_inference(made, run_name, variables)
    if not words:
        say(
            f"{target} has no tokenizer, as there was none next to the weights; to encode texts, "
            "import again with --tokenizer=DIR"
        )


def export_clip(source: str, target: str, layout: str) -> None:
    """Writes an import or a trained run of CLIP in another library's layout.

    Raises:
        InputError: it is unfinished or damaged, or the layout has no such model.
    """
    if not is_local(target):
        raise InputError(f"--to must be a local folder for safetensors, got {target}; choose one")
    check_target(epath.Path(target))
    run = Run.open(source)
    if run.kind != CLIP:
        raise InputError(f"--from must be a CLIP run, got {source}")
    # 1. Check that the layout has the model before anything is read.
    model = clip.make(plain(run.config.clip))
    check_layout(model, layout)
    shapes = run.shapes()
    mappings = clip_mappings(model, shapes, layout)
    arrays = flax.traverse_util.flatten_dict(run.variables(shapes), sep=".")
    imported = plain(run.config.get("imported") or {})
    numbers = dict(imported.get("whole_numbers", ()))

    # 2. Tensors are made one at a time, as the file is written: no second copy in memory.
    def read(name: str, dtype: np.dtype) -> np.ndarray:
        if name in numbers:
            return np.asarray(numbers[name], dtype)
        return mappings[name].to_file(arrays).astype(dtype)

    with atomic_folder(epath.Path(target)) as folder:
        # 3. Back to where it came from: the same bytes.
        if imported.get("layout") == layout:
            _write_as_imported(run, dict(imported["files"]), Path(folder), read)
            return
        # 4. To another layout: a fresh file, and the configs that belong to it.
        tensors = {name: (m.file_shape, np.dtype(np.float32)) for name, m in mappings.items()}
        write_model(Path(folder), _STEMS.get(layout, STEM), None, tensors, read)
        evaluation = plain(run.config.evaluation)
        size = evaluation["size"]
        images = Preprocessing(size, 1.0, "pil_bicubic", stretch=False)
        clip_configs.write(Path(folder), Described(model, size, images), evaluation, layout)
        for path in (run.path / TOKENIZER).glob("*"):
            write_atomic(folder / path.name, path.read_bytes())


def load(
    tensors: Mapping[str, Tensor], described: Described, layout: str, where: Any
) -> dict[str, Any]:
    """Variables of the described model in float32.

    Raises:
        InputError: tensors do not fit the model; names the first that is missing, unknown, of
            another shape, or not finite.
    """
    shape = (described.size, described.size, 3)
    shapes = clip.variable_shapes(described.model, shape)
    mappings = clip_mappings(described.model, shapes, layout)
    numbers = {name: tensor for name, tensor in tensors.items() if not _is_counter(name)}
    check_fit(mappings, {name: tensor.shape for name, tensor in numbers.items()}, where)
    arrays: dict[str, np.ndarray] = {}
    for name, mapping in mappings.items():
        values = numbers[name].view()
        check_finite(name, numbers[name], values)
        ours = mapping.to_ours(np.array(values, np.float32))
        arrays |= zip(mapping.paths, map(np.ascontiguousarray, ours), strict=True)
    return flax.traverse_util.unflatten_dict(arrays, sep=".")


def _open(source: Path, layout: str) -> tuple[list[Path], dict[str, Tensor]]:
    """The files of weights, and their tensors by name."""
    if source.is_file():
        return [source], open_file(source, integers=True)
    if not source.exists():
        raise InputError(f"{source}: no such file or folder; choose one with weights")
    stem = _STEMS.get(layout, STEM)
    weights = open_weights(source, stem, None, integers=True)
    return [source / name for name in weights.files], weights.tensors


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] in COUNTERS


def _tokenizer_files(chosen: str | None, beside: Path) -> dict[str, bytes]:
    folder = hub.local(chosen, TOKENIZER_FILES) if chosen else beside
    found = {name: folder / name for name in TOKENIZER_FILES if (folder / name).is_file()}
    if chosen and not found:
        raise InputError(
            f"--tokenizer={chosen} has no tokenizer; choose a folder or a repository that has one"
        )
    return {name: path.read_bytes() for name, path in found.items()}


def _write_as_imported(
    run: Run,
    files: Mapping[str, str],
    folder: Path,
    read: Callable[[str, np.dtype], np.ndarray],
) -> None:
    copies = run.path / _SOURCE
    for name, digest in files.items():
        # Weights that were trained since, or damaged, give another checksum.
        if write_file(folder / name, (copies / f"{name}{_HEADER}").read_bytes(), read) != digest:
            raise InputError(f"{run.path}: {name} is not what was imported; import it again")
    others = [path for path in copies.iterdir() if not path.name.endswith(_HEADER)]
    for path in [*others, *(run.path / TOKENIZER).glob("*")]:
        write_atomic(folder / path.name, path.read_bytes())
