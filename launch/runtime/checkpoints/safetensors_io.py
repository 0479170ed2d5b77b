"""Files of tensors: finding them in all their forms, reading slices, writing one tensor a time."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from launch.errors import InputError
from launch.files import atomic_file, read_object, write_atomic

# Beyond it the peers' libraries split a model into several files too.
MAX_FILE_BYTES = 10 * 10**9

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": jnp.dtype(jnp.bfloat16),
    "I64": np.dtype(np.int64),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a tensor lies.

    Attributes:
        file: the file.
        start: its first byte there.
        shape: its shape.
        dtype: its type.
    """

    file: Path
    start: int
    shape: tuple[int, ...]
    dtype: np.dtype

    def view(self) -> np.ndarray:
        """The tensor, mapped: only what is copied of it is read, and no page outlives it."""
        mapped = np.memmap(self.file, np.uint8, "r", self.start, (self.nbytes,))
        return mapped.view(np.ndarray).view(self.dtype).reshape(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return int(np.prod(self.shape)) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Weights:
    """The files of one model in one variant.

    Attributes:
        folder: where they are.
        variant: 'fp16', 'bf16', ... or None.
        files: their names, in order.
        index: the name of the index of several files; None for a single one.
        tensors: by name.
    """

    folder: Path
    variant: str | None
    files: tuple[str, ...]
    index: str | None
    tensors: dict[str, Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def file_names(stem: str, variant: str | None) -> tuple[str, str, str]:
    """Glob patterns of a single file, of the index and of the files that it indexes."""
    dot, shard = f".{variant}" if variant else "", "-?????-of-?????"
    return (
        f"{stem}{dot}.safetensors",
        f"{stem}.safetensors.index{dot}.json",
        f"{stem}{dot}{shard}.safetensors",
    )


def find(names: Iterable[str], stem: str, variant: str | None, where: Any) -> tuple[str, bool]:
    """Chooses the single file, or else the index, of a variant.

    Args:
        names: what is in the folder.
        stem: of the files' names: 'model', 'diffusion_pytorch_model'.
        variant: 'fp16', 'bf16', ...; None is the files without a variant in their names.
        where: the folder, for the message.

    Returns:
        The name, and whether it is that of an index.

    Raises:
        InputError: there is none; names the variants that there are.
    """
    names = set(names)
    single, index, _ = file_names(stem, variant)
    if single in names:
        return single, False
    if index in names:
        return index, True
    there = _variants(names, stem)
    if there:
        listed = " and ".join(name or "the one without a variant" for name in there)
        wanted = f"the variant {variant}" if variant else "weights without a variant"
        raise InputError(f"{where}: {wanted} is not there; there is {listed}")
    pickles = sorted(name for name in names if name.endswith((".bin", ".pt", ".ckpt")))
    if pickles:
        raise InputError(
            f"{where}: {pickles[0]} is a pickle, which could run any code when it is read; "
            "save the model as safetensors (save_pretrained does) and name that folder"
        )
    raise InputError(
        f"{where}: there are no weights ({single} or {index}); name a folder that has them"
    )


def _variants(names: set[str], stem: str) -> list[str | None]:
    variant = r"(?:\.(\w+))?"
    single = re.compile(rf"{stem}{variant}\.safetensors")
    index = re.compile(rf"{stem}\.safetensors\.index{variant}\.json")
    found = {
        match[1] for name in names for match in [single.fullmatch(name) or index.fullmatch(name)]
        if match
    }  # fmt: skip
    return sorted(found, key=lambda variant: variant or "")


def open_weights(folder: Path, stem: str, variant: str | None, integers: bool = False) -> Weights:
    """Finds the files of a model and reads their headers.

    Args:
        folder: where they are.
        stem: of their names, see `find`.
        variant: see `find`.
        integers: whether whole numbers (counts of batches) may be among the tensors.

    Raises:
        InputError: no such files, a file that the index names is missing or has not the tensors
            that the index says, a damaged file, tensors that are not floating-point numbers.
    """
    name, is_index = find((path.name for path in folder.iterdir()), stem, variant, folder)
    if not is_index:
        return Weights(folder, variant, (name,), None, open_file(folder / name, integers))
    weight_map = read_object(folder / name).get("weight_map")
    listed = isinstance(weight_map, dict) and weight_map
    if not listed or not all(isinstance(file, str) for file in weight_map.values()):
        raise InputError(f"{folder / name} has no weight_map: it is no index; download it again")
    files, tensors = tuple(sorted(set(weight_map.values()))), {}
    for file in files:
        if Path(file).name != file or not (folder / file).is_file():
            raise InputError(
                f"{folder / name} names the file {file}, which is missing: download it as well"
            )
        held = open_file(folder / file, integers)
        listed = {tensor for tensor, place in weight_map.items() if place == file}
        for tensor in sorted(held.keys() ^ listed):
            raise InputError(
                f"{folder / name} and {file} do not agree on the tensor {tensor}: they are of "
                "different models or incomplete, download both again"
            )
        tensors.update(held)
    return Weights(folder, variant, files, name, tensors)


def open_file(path: Path, integers: bool = False) -> dict[str, Tensor]:
    """Reads the header of one file; arguments and errors are those of `open_weights`."""
    try:
        with safe_open(path, "numpy"):  # it checks that the tensors fill the file without a hole
            pass
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is not a whole safetensors file ({' '.join(str(error).split())}): "
            "download or copy it again"
        ) from None
    header = read_header(path)
    tensors = {}
    for name, (start, end, entry) in tensor_places(header).items():
        readable = [known for known in DTYPES if integers or known != "I64"]
        if entry["dtype"] not in readable:
            raise InputError(
                f"{path}: the tensor {name} is of type {entry['dtype']}; "
                f"only {', '.join(readable)} can be read, save it as one of them"
            )
        first = 8 + len(header) + start
        dtype = DTYPES[entry["dtype"]]
        tensors[name] = Tensor(path, first, tuple(entry["shape"]), dtype)
        assert tensors[name].nbytes == end - start
    return tensors


def read_header(path: Path) -> bytes:
    """The JSON that a file begins with, padding included."""
    with path.open("rb") as file:
        return file.read(int.from_bytes(file.read(8), "little"))


def tensor_places(header: bytes) -> dict[str, tuple[int, int, dict]]:
    """First byte, end and header entry of every tensor, in the order of the file."""
    table = json.loads(header)
    table.pop("__metadata__", None)
    places = {name: (*entry["data_offsets"], entry) for name, entry in table.items()}
    return dict(sorted(places.items(), key=lambda item: item[1][:2]))


def make_header(tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> bytes:
    """A header as the safetensors library writes it: widest types first, then by name.

    Args:
        tensors: shape and type by name.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name][1].itemsize, name))
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        shape, dtype = tensors[name]
        start, end = end, end + int(np.prod(shape)) * dtype.itemsize
        offsets = [start, end]
        table[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": offsets}
    header = json.dumps(table, separators=(",", ":")).encode()
    return header + b" " * (-len(header) % 8)


def write_file(path: Path, header: bytes, read: Callable[[str, np.dtype], np.ndarray]) -> str:
    """Writes a file, one tensor after the other.

    Args:
        path: of the file.
        header: as `read_header` or `make_header` return it.
        read: gives a tensor by its name, as the type it is told.

    Returns:
        SHA-256 of the file.
    """
    digest = hashlib.sha256()
    with atomic_file(path) as file:

        def write(data: Any) -> None:
            digest.update(data)
            file.write(data)

        write(len(header).to_bytes(8, "little"))
        write(header)
        for name, (start, end, entry) in tensor_places(header).items():
            array = np.asarray(read(name, DTYPES[entry["dtype"]]), order="C")
            if array.shape != tuple(entry["shape"]) or array.nbytes != end - start:
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
    """Writes a model as one file, or with an index as several of at most `MAX_FILE_BYTES` each.

    Args:
        folder: exists.
        stem: of the files' names.
        variant: part of the files' names.
        tensors: shape and type by name.
        read: gives a tensor by its name, as the type it is told.
    """
    groups: list[list[str]] = [[]]
    total = used = 0
    for name, (shape, dtype) in tensors.items():
        size = int(np.prod(shape)) * dtype.itemsize
        if groups[-1] and used + size > MAX_FILE_BYTES:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used, total = used + size, total + size
    single, index, shard = file_names(stem, variant)
    weight_map = {}
    for number, group in enumerate(groups, 1):
        name = shard.replace("?????-of-?????", f"{number:05}-of-{len(groups):05}")
        name = single if len(groups) == 1 else name
        write_file(folder / name, make_header({n: tensors[n] for n in group}), read)
        weight_map.update(dict.fromkeys(group, name))
    if len(groups) > 1:
        table = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_atomic(folder / index, (json.dumps(table, indent=2) + "\n").encode())
