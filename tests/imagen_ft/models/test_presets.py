import functools

import jax
import pytest
import torch
from flax.traverse_util import flatten_dict
from transformers import T5Config, T5EncoderModel

from imagen_ft.models.efficient_unet import EfficientUNet
from imagen_ft.models.presets import PRESETS, T5_XXL_WIDTH, make, parameter_shapes
from imagen_ft.models.t5 import T5Encoder
from imagen_ft.models.unet import UNet
from launch.errors import InputError
from tests.support import diffusers_unet as parity
from tests.support.slow import first_fast

# Computed from the public configurations, in millions.
IF = {"if_i_m": 371.6, "if_i_l": 935.4, "if_i_xl": 4304.7, "if_ii_m": 461.1, "if_ii_l": 1243.3}
# Saharia et al. 2022, section 3.
IMAGEN = {"imagen_base64": 2000, "imagen_sr256": 600, "imagen_sr1024": 400}


def sizes(shapes):
    return sorted(leaf.size for leaf in jax.tree.leaves(shapes))


def torch_sizes(module):
    return sorted(parameter.numel() for parameter in module.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", IF)
def test_if_has_the_parameters_of_diffusers(name, monkeypatch):
    shapes = parameter_shapes(name)
    assert sum(sizes(shapes)) / 1e6 == pytest.approx(IF[name], abs=0.05)
    model = make(name)
    config = {field: getattr(model, field) for field in UNet.__dataclass_fields__}
    monkeypatch.setattr(parity, "TEXT_WIDTH", 4096)
    with torch.device("meta"):
        theirs = parity.diffusers_unet(config)
    assert sizes(shapes) == torch_sizes(theirs)


@functools.cache
def imagen_shapes(name):
    return parameter_shapes(name)


@pytest.mark.parametrize("name", first_fast(IMAGEN))
def test_imagen_has_the_size_of_the_paper(name):
    assert sum(sizes(imagen_shapes(name))) / 1e6 == pytest.approx(IMAGEN[name], rel=0.05)


@pytest.mark.parametrize(("name", "to_itself"), [("imagen_sr256", True), ("imagen_sr1024", False)])
def test_imagen_attends_in_the_last_block(name, to_itself):
    blocks = {path[:-2] for path in flatten_dict(imagen_shapes(name)) if "text_key" in path}
    assert blocks == {("down_3", "attention"), ("up_3", "attention")}
    kinds = {path[-2] for path in flatten_dict(imagen_shapes(name)) if "attention" in path}
    assert ("key" in kinds) == ("feed_forward_in" in kinds) == to_itself


@pytest.mark.slow
def test_imagen_sr1024_runs_on_crops_and_whole_images():
    shapes = {"params": imagen_shapes("imagen_sr1024")}
    for size in (256, 1024):
        inputs = [(1, size, size, 6), (1,), (1, 128, T5_XXL_WIDTH), (1,)]
        inputs = [jax.ShapeDtypeStruct(shape, "float32") for shape in inputs]
        output = jax.eval_shape(make("imagen_sr1024").apply, shapes, *inputs)
        assert output.shape == (1, size, size, 3)


@pytest.mark.parametrize(("name", "millions"), first_fast([("t5_small", 35.3), ("t5_xxl", 4762.3)]))
def test_t5_has_the_parameters_of_transformers(name, millions):
    assert sum(sizes(parameter_shapes(name))) / 1e6 == pytest.approx(millions, abs=0.05)
    config = T5Config(**PRESETS[name].fields, feed_forward_proj="gated-gelu")
    with torch.device("meta"):
        theirs = T5EncoderModel(config)
    assert sizes(parameter_shapes(name)) == torch_sizes(theirs)


TINY = {
    "tiny_if_i": (UNet, 6, False),
    "tiny_if_ii": (UNet, 6, True),
    "tiny_imagen_base": (UNet, 3, False),
    "tiny_imagen_sr": (EfficientUNet, 3, True),
}


@pytest.mark.parametrize("name", TINY)
def test_tiny_models_are_of_their_kind(name):
    module, out_channels, noise_level = TINY[name]
    model, shapes = make(name), parameter_shapes(name)
    assert type(model) is module
    assert (model.out_channels, model.noise_level) == (out_channels, noise_level)
    assert sum(sizes(shapes)) < 100_000
    # Conditioned on what the tiny T5 returns.
    projection = shapes["text_projection" if module is EfficientUNet else "encoder_hid_proj"]
    assert projection["kernel"].shape[0] == make("tiny_t5").d_model
    # The image, and in super-resolution the low-resolution one.
    assert shapes["conv_in"]["kernel"].shape[2] == (6 if noise_level else 3)


def test_overrides():
    assert isinstance(make("tiny_t5"), T5Encoder)
    assert make("tiny_t5", num_layers=1).num_layers == 1 < make("tiny_t5").num_layers
    small, usual = (parameter_shapes("tiny_t5", **fields) for fields in (dict(num_layers=1), {}))
    assert sum(sizes(small)) < sum(sizes(usual))


@pytest.mark.parametrize("use", [make, parameter_shapes])
def test_unknown_names(use):
    with pytest.raises(InputError, match=r"preset must be .*got 'if_i_s'"):
        use("if_i_s")
    with pytest.raises(
        InputError,
        match="model 't5_small' has no field 'width'; use d_ff, ",
    ):
        use("t5_small", width=3)
