"""Arrays under other names and with other axes, there and back."""

import numpy as np
import pytest

from launch.errors import InputError
from launch.runtime.checkpoints.tensor_mapping import check_fit, tensor_mappings

RULES = (
    (r"^block_(\d+)\.", lambda match: f"blocks.{int(match[1]) + 1}."),
    (r"\.(query|key|value)\.", ".qkv."),
    (r"\.kernel$", ".weight"),
)
FUSED = ("query", "key", "value")


def draw():
    rng = np.random.default_rng(0)
    attention = {name: {"kernel": rng.normal(size=(4, 6))} for name in sorted(FUSED)}
    conv = {"kernel": rng.normal(size=(3, 2, 5, 7)), "bias": rng.normal(size=7)}
    return {"block_0": attention, "conv": conv}


def test_there_and_back():
    params = draw()
    query, key, value = (params["block_0"][name]["kernel"] for name in FUSED)
    arrays = {f"block_0.{name}.kernel": params["block_0"][name]["kernel"] for name in FUSED}
    arrays |= {f"conv.{name}": array for name, array in params["conv"].items()}
    mappings = tensor_mappings(params, RULES, FUSED)
    tensors = {name: mapping.to_file(arrays) for name, mapping in mappings.items()}
    # As torch.nn.Linear and torch.nn.Conv2d have them.
    np.testing.assert_array_equal(tensors["blocks.1.qkv.weight"], np.hstack([query, key, value]).T)
    np.testing.assert_array_equal(
        tensors["conv.weight"], np.einsum("hwio->oihw", params["conv"]["kernel"])
    )
    assert tensors.keys() == {"blocks.1.qkv.weight", "conv.weight", "conv.bias"}
    for name, mapping in mappings.items():
        assert mapping.file_shape == tensors[name].shape
        ours = mapping.to_ours(tensors[name])
        for path, array in zip(mapping.paths, ours, strict=True):
            np.testing.assert_array_equal(array, arrays[path])


def test_a_slice_of_ours_is_a_slice_of_the_file():
    kernel = draw()["conv"]["kernel"]
    mapping = tensor_mappings({"conv": {"kernel": kernel}}, RULES)["conv.weight"]
    index = (slice(1, 3), slice(None), slice(2, 4), slice(0, 6))
    tensor = mapping.to_file({"conv.kernel": kernel})
    (array,) = mapping.to_ours(tensor[mapping.by_file_axis(index)])
    np.testing.assert_array_equal(array, kernel[index])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv.bias": None}, r"x: the tensor conv\.bias of the model is missing"),
        (
            {"more": (1,)},
            r"x: the model has no tensor more \(1 too many\); choose the model that",
        ),
        (
            {"conv.weight": (7, 5, 2, 3)},
            r"conv\.weight must have .*got \(7, 5, 2, 3\); choose the model that",
        ),
        (
            {"conv.bias": (8,)},
            r"conv\.bias must have the shape \(7,\) of the model, got \(8,\); make it anew",
        ),
        (
            {"qkv": (18, 5)},
            r"the tensor qkv must have the shape \(18, 4\) of the model, got \(18, 5\)",
        ),
        ({"qkv": (18, 4)}, None),
        ({"qkv": (18, 4), "blocks.1.qkv.weight": None}, None),
    ],
)
def test_tensors_are_compared_with_the_model(change, message):
    mappings = tensor_mappings(draw(), RULES, FUSED)
    shapes = {name: mapping.file_shape for name, mapping in mappings.items()} | change
    shapes = {name: shape for name, shape in shapes.items() if shape is not None}
    options = dict(aliases={"qkv": "blocks.1.qkv.weight"}, advice_on={"conv.bias": "make it anew"})
    if message is None:
        check_fit(mappings, shapes, "x", **options)
        return
    with pytest.raises(InputError, match=message):
        check_fit(mappings, shapes, "x", **options)
