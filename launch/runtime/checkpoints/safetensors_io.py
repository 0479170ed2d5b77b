"""Finds safetensors files in all their forms, maps their tensors, writes them one by one."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
from safetensors import SafetensorError, safe_open

from launch.errors import InputError
from launch.files import atomic_file, read_object, write_atomic
from launch.runtime.checkpoints.safetensors_header import (
    DTYPES,
    LENGTH_BYTES,
    make_header,
    parse_header,
    read_header,
    tensor_bytes,
)

# Diffusers splits larger models into several files too.
MAX_FILE_BYTES = 10 * 10**9


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a tensor is: `start` is its first byte in `file`."""

    file: Path
    start: int
    shape: tuple[int, ...]
    dtype: np.dtype

    def view(self) -> np.ndarray:
        """The tensor, memory-mapped: only what is copied is read, and no page outlives it."""
        mapped = np.memmap(self.file, np.uint8, "r", self.start, (self.nbytes,))
        return mapped.view(np.ndarray).view(self.dtype).reshape(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return tensor_bytes(self.shape, self.dtype)


def check_finite(name: str, tensor: Tensor, values: np.ndarray) -> None:
    """Raises `InputError` if values of a tensor, or of a part of it, are NaN or infinite."""
    if not np.isfinite(values).all():
        raise InputError(
            f"{tensor.file}: the tensor {name} has NaN or infinity; download or copy the "
            "file again, or save the weights again"
        )


@dataclasses.dataclass(frozen=True)
class Weights:
    """The files of one model in one variant."""

    folder: Path
    variant: str | None  # 'fp16', 'bf16', ...; None for names without one
    files: tuple[str, ...]
    index: str | None  # lists several files; None for a single one
    tensors: dict[str, Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def file_names(stem: str, variant: str | None) -> tuple[str, str, str]:
    """Glob patterns of the single file, the index, and the files that it lists."""
    name = _name_pattern(stem, variant)
    return name.format(suffix=""), _index_name(stem, variant), name.format(suffix="-?????-of-?????")


def _name_pattern(stem: str, variant: str | None) -> str:
    dot = f".{variant}" if variant else ""
    return f"{stem}{dot}{{suffix}}.safetensors"


def _index_name(stem: str, variant: str | None) -> str:
    dot = f".{variant}" if variant else ""
    return f"{stem}.safetensors.index{dot}.json"


def choose_file(
    names: Iterable[str], stem: str, variant: str | None, where: Any
) -> tuple[str, bool]:
    """The name of a variant's single file, else of its index; and whether it is an index.

    `stem` begins the names ('model', 'diffusion_pytorch_model'); variant None is the files without
    one. Raises `InputError` if there is neither, naming the variants that exist.
    """
    # 1. The single file, then the index.
    names = set(names)
    single, index, _ = file_names(stem, variant)
    if single in names:
        return single, False
    if index in names:
        return index, True
    # 2. Neither: say what there is instead.
    if variants := _variants(names, stem):
        others = " and ".join(name or "weights without a variant" for name in variants)
        missing = f"variant {variant}" if variant else "weights without a variant"
        raise InputError(f"{where} has no {missing}, only {others}; choose one of these")
    pickles = sorted(name for name in names if name.endswith((".bin", ".pt", ".ckpt")))
    if pickles:
        raise InputError(
            f"{where}: {pickles[0]} is a pickle, which could run any code when it is read; save "
            "the model as safetensors (save_pretrained does) and use that folder"
        )
    raise InputError(f"{where} has no weights ({single} or {index}); choose a folder that has them")


def _variants(names: set[str], stem: str) -> list[str | None]:
    # The variant precedes the suffix: model.fp16.safetensors, model.safetensors.index.fp16.json.
    variant = r"(?:\.(\w+))?"
    single = re.compile(rf"{stem}{variant}\.safetensors")
    index = re.compile(rf"{stem}\.safetensors\.index{variant}\.json")
    matches = [single.fullmatch(name) or index.fullmatch(name) for name in names]
    return sorted({match[1] for match in matches if match}, key=lambda variant: variant or "")


def open_weights(folder: Path, stem: str, variant: str | None, integers: bool = False) -> Weights:
    """Finds the files of a model, see `choose_file`, and reads their headers.

    `integers` allows int64 tensors, such as batch counters. Raises `InputError` if files are
    missing or damaged, disagree with the index, or hold other types.
    """
    # 1. A single file needs no index.
    name, is_index = choose_file((path.name for path in folder.iterdir()), stem, variant, folder)
    if not is_index:
        return Weights(folder, variant, (name,), None, open_file(folder / name, integers))
    # 2. Read the index, which maps tensors to files.
    weight_map = read_object(folder / name).get("weight_map")
    whole = isinstance(weight_map, dict) and all(isinstance(f, str) for f in weight_map.values())
    if not weight_map or not whole:
        raise InputError(
            f"{folder / name} has no weight_map, so it is not an index; download it again"
        )
    # 3. Open each file; it must hold exactly the tensors that the index says.
    files, tensors = tuple(sorted(set(weight_map.values()))), {}
    for file in files:
        # Plain names only: a path could lead outside the folder.
        if Path(file).name != file or not (folder / file).is_file():
            raise InputError(
                f"{folder / name} lists the file {file}, which is missing; download it as well"
            )
        tensors_of_file = open_file(folder / file, integers)
        indexed = {tensor for tensor, indexed_in in weight_map.items() if indexed_in == file}
        for tensor in sorted(tensors_of_file.keys() ^ indexed):
            raise InputError(
                f"{folder / name} and {file} disagree about the tensor {tensor}; they are "
                "incomplete or belong to different models, download both again"
            )
        tensors.update(tensors_of_file)
    return Weights(folder, variant, files, name, tensors)


def open_file(path: Path, integers: bool = False) -> dict[str, Tensor]:
    """The tensors of one file from its header; arguments and errors as of `open_weights`."""
    try:
        with safe_open(path, "numpy"):  # checks that the tensors fill the file without a gap
            pass
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is not a complete safetensors file ({' '.join(str(error).split())}); "
            "download or copy it again"
        ) from None
    readable = [dtype for dtype in DTYPES if integers or dtype != "I64"]
    header = read_header(path)
    tensors = {}
    for name, entry in parse_header(header)[0].items():
        if entry.dtype not in readable:
            raise InputError(
                f"{path}: the dtype of {name} must be one of {', '.join(readable)}, got "
                f"{entry.dtype}; save it as one of them"
            )
        start = LENGTH_BYTES + len(header) + entry.start
        tensors[name] = Tensor(path, start, entry.shape, DTYPES[entry.dtype])
        assert tensors[name].nbytes == entry.end - entry.start
    return tensors


def write_file(path: Path, header: bytes, read: Callable[[str, np.dtype], np.ndarray]) -> str:
    """Writes a file and returns its SHA-256; `read(name, dtype)` supplies one tensor at a time."""
    digest = hashlib.sha256()
    with atomic_file(path) as file:

        def write(data: Any) -> None:
            digest.update(data)
            file.write(data)

        write(len(header).to_bytes(LENGTH_BYTES, "little"))
        write(header)
        for name, entry in parse_header(header)[0].items():
            array = np.asarray(read(name, DTYPES[entry.dtype]), order="C")
            if array.shape != entry.shape or array.nbytes != entry.end - entry.start:
                raise ValueError(f"{path}: {name} is {array.shape}, its header says {entry}")
            write(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def write_model(
    folder: Path,
    stem: str,
    variant: str | None,
    tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    read: Callable[[str, np.dtype], np.ndarray],
) -> None:
    """Writes a model as one file, or as several of at most `MAX_FILE_BYTES` with an index.

    A tensor above that size gets its own file. `tensors` maps names to shapes and types;
    `read(name, dtype)` supplies the values.
    """
    split = huggingface_hub.split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda tensor: tensor_bytes(*tensor),
        filename_pattern=_name_pattern(stem, variant),
        max_shard_size=MAX_FILE_BYTES,
    )
    for file, names in split.filename_to_tensors.items():
        write_file(folder / file, make_header({name: tensors[name] for name in names}), read)
    if split.is_sharded:
        weight_map = dict(sorted(split.tensor_to_filename.items()))
        index = {"metadata": split.metadata, "weight_map": weight_map}
        data = (json.dumps(index, indent=2) + "\n").encode()
        write_atomic(folder / _index_name(stem, variant), data)
