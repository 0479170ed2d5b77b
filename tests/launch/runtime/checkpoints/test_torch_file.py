import collections
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from launch.errors import InputError
from launch.runtime.checkpoints.torch_file import read_state_dict

FORMS = {"zip": True, "older": False}


def state_dict():
    """Tensors of all kinds: views into one storage, turned axes, scalars, empty ones."""
    whole = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = {
        "turned": whole.T,
        "part": whole[1:3, ::2],
        "half": torch.tensor([1.5, -2.0], dtype=torch.float16),
        "brain": torch.tensor([0.25, 3.0], dtype=torch.bfloat16),
        "double": torch.tensor([[1e300]], dtype=torch.float64),
        "num_batches_tracked": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "mask": torch.tensor([True, False]),
        "trained": torch.nn.Parameter(torch.ones(2, 2)),
    }
    tensors = collections.OrderedDict(tensors)
    tensors._metadata = {"": {"version": 1}}  # as modules leave it
    return tensors


@pytest.mark.parametrize("form", FORMS)
def test_all_kinds_of_tensors(tmp_path, form):
    path = tmp_path / "weights.pth"
    torch.save(state_dict(), path, _use_new_zipfile_serialization=FORMS[form])
    ours, theirs = read_state_dict(path), state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert str(tensor.dtype) == f"torch.{ours[name].dtype.name}"
        np.testing.assert_array_equal(
            ours[name].astype(np.float64), tensor.detach().to(torch.float64).numpy(), strict=True
        )


class Attack:
    def __init__(self, path):
        self._path = path

    def __reduce__(self):
        return os.mkdir, (self._path,)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("content", ["a call", "a call in a list", "a module"])
def test_nothing_is_run(tmp_path, form, content):
    path, made = tmp_path / "weights.pth", tmp_path / "made"
    attack = Attack(str(made))
    saved = {
        "a call": {"w": torch.ones(2), "x": attack},
        "a call in a list": [attack],
        "a module": torch.nn.Linear(2, 2),
    }[content]
    torch.save(saved, path, _use_new_zipfile_serialization=FORMS[form])
    with pytest.raises(InputError, match=r"asks for \S+, which weights do not need"):
        read_state_dict(path)
    assert not made.exists()


@pytest.mark.parametrize("form", FORMS)
def test_every_shorter_file_is_damaged(tmp_path, form):
    path = tmp_path / "weights.pth"
    tensors = {"w": torch.ones(3), "b": torch.ones(2)}
    torch.save(tensors, path, _use_new_zipfile_serialization=FORMS[form])
    data = path.read_bytes()
    for size in range(0, len(data) - 1, 31):
        path.write_bytes(data[:size])
        with pytest.raises(InputError, match=r"weights\.pth is not a complete file of torch\.save"):
            read_state_dict(path)


class Reaching:
    """A tensor of four numbers that asks for more of its storage than there is."""

    def __init__(self, offset, shape, strides):
        self.arguments = offset, shape, strides

    def __reduce__(self):
        storage = torch.arange(4, dtype=torch.float32).untyped_storage()
        typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32)
        return torch._utils._rebuild_tensor_v2, (typed, *self.arguments, False, {})


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize(
    "arguments", [(0, (5,), (1,)), (4, (1,), (1,)), (-1, (2,), (1,)), (3, (2,), (-1,))]
)
def test_a_tensor_beyond_its_numbers(tmp_path, arguments):
    torch.save({"w": Reaching(*arguments)}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="a tensor is larger than its data"):
        read_state_dict(tmp_path / "weights.pth")


@pytest.mark.parametrize("name", ["a pickle", "an archive", "text", "no state dict", "nothing"])
def test_other_files(tmp_path, name):
    path = tmp_path / "weights.pth"
    if name == "a pickle":
        path.write_bytes(pickle.dumps({"w": 1}))
    elif name == "an archive":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a", "b")
    elif name == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
    elif name == "no state dict":
        torch.save({"epoch": 3, "w": torch.ones(1)}, path)
    wrong = "no such file" if name == "nothing" else "is not a complete file of torch.save"
    with pytest.raises(InputError, match=wrong):
        read_state_dict(path)
