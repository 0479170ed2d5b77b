"""Files of tensors are what other libraries write and read."""

import json

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from launch.files import sha256
from launch.runtime.checkpoints import safetensors_io
from launch.runtime.checkpoints.safetensors_header import make_header, parse_header, read_header

# Of several widths, one of them a scalar.
ARRAYS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.arange(3, dtype=np.float16),
    "c": np.arange(4, dtype=np.float32),
    "one": np.asarray(7, np.int64),
}


def forms(arrays):
    return {name: (array.shape, array.dtype) for name, array in arrays.items()}


@pytest.fixture
def theirs(tmp_path):
    safetensors.numpy.save_file(ARRAYS, tmp_path / "theirs", metadata={"format": "pt"})
    return tmp_path / "theirs"


def test_a_file_is_what_the_library_would_write(theirs, tmp_path):
    """In the library's order and with its padding."""
    header = make_header(forms(ARRAYS))
    digest = safetensors_io.write_file(tmp_path / "ours", header, lambda name, _: ARRAYS[name])
    assert (tmp_path / "ours").read_bytes() == theirs.read_bytes()
    assert digest == sha256(tmp_path / "ours")


def test_a_header_is_read_as_the_library_reads_it(theirs):
    entries, metadata = parse_header(read_header(theirs))
    with safetensors.safe_open(theirs, "numpy") as file:
        assert metadata == file.metadata()
        assert list(entries) == list(file.offset_keys())
    spans = [(entry.start, entry.end) for entry in entries.values()]
    assert [start for start, _ in spans] == [0, *(end for _, end in spans[:-1])]
    for name, tensor in safetensors_io.open_file(theirs, integers=True).items():
        assert (tensor.shape, tensor.dtype) == (ARRAYS[name].shape, ARRAYS[name].dtype)
        np.testing.assert_array_equal(tensor.view(), ARRAYS[name])


@pytest.mark.parametrize("length", [2**60, 2**64 - 1])
def test_a_wrong_length_is_not_believed(theirs, length):
    theirs.write_bytes(length.to_bytes(8, "little") + theirs.read_bytes()[8:])
    assert len(read_header(theirs)) < theirs.stat().st_size
    with pytest.raises(ValueError):
        parse_header(read_header(theirs))


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_several_files_with_an_index(tmp_path, monkeypatch, variant):
    """As diffusers names them, in the order of the tensors; a large tensor has its own file."""
    monkeypatch.setattr(safetensors_io, "MAX_FILE_BYTES", 24)
    sizes = {"d": 3, "a": 2, "large": 9, "c": 1, "b": 5}
    arrays = {name: np.arange(size, dtype=np.float32) for name, size in sizes.items()}
    read = lambda name, _: arrays[name]  # noqa: E731
    safetensors_io.write_model(tmp_path, "model", variant, forms(arrays), read)
    dot = f".{variant}" if variant else ""
    index = json.loads((tmp_path / f"model.safetensors.index{dot}.json").read_bytes())
    assert list(index["weight_map"]) == sorted(arrays)
    assert index["metadata"] == {"total_size": 80}
    weights = safetensors_io.open_weights(tmp_path, "model", variant)
    assert weights.files == tuple(f"model{dot}-{n:05}-of-00003.safetensors" for n in (1, 2, 3))
    for name, tensor in weights.tensors.items():
        np.testing.assert_array_equal(tensor.view(), arrays[name])
    groups = [set(safetensors.numpy.load_file(tmp_path / name)) for name in weights.files]
    assert {"large"} in groups
    assert len(list(tmp_path.iterdir())) == 4
