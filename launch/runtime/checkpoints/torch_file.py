"""Reads state dicts written by torch.save, without torch and without running code from the file.

Such a file is a pickle, which can call any function. This reader knows the few names that plain
tensors need and refuses all others. There are two formats: a zip archive, and before PyTorch 1.6
several pickles followed by the numbers.
"""

import collections
import dataclasses
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from launch.errors import InputError
from launch.runtime.checkpoints.safetensors_io import Tensor

_DTYPES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
# The first two pickles of the older format.
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_ZIP = b"PK\x03\x04"


class _Refused(pickle.UnpicklingError):
    """A file asks for a name that no plain tensor needs."""


@dataclasses.dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype
    size: int


@dataclasses.dataclass(frozen=True)
class _View:
    """A tensor before its numbers are read; offset and strides count numbers, not bytes."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def read(self, values: np.ndarray) -> np.ndarray:
        """Cuts the tensor out of its storage's numbers [n]."""
        # The strides come from the file: they must not lead outside the storage.
        last = self.offset + sum(
            (size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True)
        )
        least = min((self.offset, *self.shape, *self.strides), default=0)
        if least < 0 or (0 not in self.shape and last >= len(values)):
            raise ValueError("a tensor is larger than its data")
        strides = [stride * values.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(
            values[self.offset :], self.shape, strides, writeable=False
        ).copy()


class _Unpickler(pickle.Unpickler):
    """Makes dicts, numbers, strings and `_View`s, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch" and name in _DTYPES:
            return np.dtype(_DTYPES[name])
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return self._parameter
        raise _Refused(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        # Storages are persistent objects of the pickle: (kind, type, key, device, size).
        kind, dtype, key, _, size, *view = pid
        if kind != "storage" or not isinstance(dtype, np.dtype) or any(view):
            raise ValueError("its numbers are stored in an unknown way")
        return _Storage(str(key), dtype, int(size))

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _View:
        if not isinstance(storage, _Storage):
            raise ValueError("a tensor without data")
        return _View(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))

    def _parameter(self, tensor: Any, *_: Any) -> Any:
        return tensor


@dataclasses.dataclass(frozen=True)
class HeldTensor(Tensor):
    """A tensor that was read along with its whole file."""

    values: np.ndarray

    def view(self) -> np.ndarray:
        """The values, which are in memory already."""
        return self.values


def open_torch_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a file like those of other formats; see `read_state_dict`."""
    return {
        name: HeldTensor(path, 0, values.shape, values.dtype, values)
        for name, values in read_state_dict(path).items()
    }


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Reads the tensors in a file of torch.save(model.state_dict(), path), in their types there.

    Raises `InputError` if the file is missing, damaged, of another kind, or needs more than plain
    tensors.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; choose one with weights")
    try:
        with path.open("rb") as file:
            is_zip = file.read(len(_ZIP)) == _ZIP
            file.seek(0)
            # Tensors may share a storage: read each storage once.
            views, read = (_open_zip if is_zip else _open_older)(file)
            storages = {view.storage.key: view.storage for view in views.values()}
            values = {key: read(storage) for key, storage in storages.items()}
            return {name: view.read(values[view.storage.key]) for name, view in views.items()}
    except _Refused as error:
        raise InputError(
            f"{path} asks for {error}, which weights do not need and which could run any code; "
            "save only the state dict, torch.save(model.state_dict(), ...), or safetensors"
        ) from None
    # Random bytes make an unpickler raise almost anything.
    except (Exception, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"{path} is not a complete file of torch.save ({reason}); download or copy it again"
        ) from None


_Read = Callable[[_Storage], np.ndarray]


def _open_zip(file: BinaryIO) -> tuple[dict[str, _View], _Read]:
    archive = zipfile.ZipFile(file)
    (record,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
    folder = record.removesuffix("data.pkl")
    if folder + "byteorder" in archive.namelist():
        _check_little(archive.read(folder + "byteorder") == b"little")
    views = _views(_Unpickler(io.BytesIO(archive.read(record))).load())

    def read(storage: _Storage) -> np.ndarray:
        # zipfile compares what it reads with the archive's checksum.
        return _numbers(archive.read(f"{folder}data/{storage.key}"), storage)

    return views, read


def _open_older(file: BinaryIO) -> tuple[dict[str, _View], _Read]:
    # Unpicklers read exactly their own pickle, so that the next one starts at the right byte.
    magic, protocol, system = (_Unpickler(file).load() for _ in range(3))
    if magic != _MAGIC or protocol != _PROTOCOL:
        raise ValueError("it does not begin like one")
    _check_little(system["little_endian"])
    views = _views(_Unpickler(file).load())
    # After the tensors comes a pickle with the keys of the storages, then each one's size and
    # numbers.
    storages = {view.storage.key: view.storage for view in views.values()}
    values = {}
    for key in _Unpickler(file).load():
        storage = storages[key]
        if int.from_bytes(file.read(8), "little") != storage.size:
            raise ValueError("its parts do not agree on their sizes")
        values[key] = _numbers(file.read(storage.size * storage.dtype.itemsize), storage)
    return views, lambda storage: values[storage.key]


def _views(content: Any) -> dict[str, _View]:
    if not isinstance(content, dict) or not content:
        raise ValueError("it has no state dict")
    for name, view in content.items():
        if not isinstance(name, str) or not isinstance(view, _View):
            raise ValueError(f"{name} is not a tensor")
    return dict(content)


def _numbers(data: bytes, storage: _Storage) -> np.ndarray:
    if len(data) != storage.size * storage.dtype.itemsize:
        raise ValueError("it ends too early")
    return np.frombuffer(data, storage.dtype)


def _check_little(is_little: bool) -> None:
    if not is_little:
        raise ValueError("its numbers are big-endian")
