"""Our U-Net of Stable Diffusion against diffusers', through the files that it writes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from imagen_ft import weights
from imagen_ft.models import presets
from imagen_ft.models.latent_unet import Added
from imagen_ft.weights.latent_unet_config import build_latent_unet
from imagen_ft.weights.tensor_rules import layout_of
from launch.errors import InputError
from launch.runtime.checkpoints.tensor_mapping import tensor_mappings
from tests.parity.latent_models import (
    LATENTS,
    POOLED,
    UNET,
    UNETS,
    from_torch,
    tiny_unet,
    to_torch,
)
from tests.parity.torch_weights import relative_error
from tests.support.close import assert_same_up_to_rounding
from tests.support.devices import drawn

SIZES = [[900, 1200, 0, 64, 1024, 1024], [512, 512, 3, 0, 768, 1024]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [*(pytest.param(k, marks=pytest.mark.slow) for k in ("sd15", "sd21")), "sdxl"]
)
def test_output_and_gradient(kind, tmp_path):
    theirs = tiny_unet(kind)
    theirs.save_pretrained(tmp_path)
    model, params = weights.load_part("unet", tmp_path)
    width = UNETS[kind]["cross_attention_dim"]
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    x, text, cotangent = draw(2, 8, 6, LATENTS), draw(2, 5, width), draw(2, 8, 6, LATENTS)
    t, pooled, sizes = np.float32([17, 803]), draw(2, POOLED), np.float32(SIZES)
    added = Added(pooled, sizes) if kind == "sdxl" else None

    torch_x, torch_text = to_torch(x), torch.from_numpy(text).requires_grad_()
    told = dict(text_embeds=torch.from_numpy(pooled), time_ids=torch.from_numpy(sizes))
    expected = theirs(torch_x, torch.from_numpy(t), torch_text, added_cond_kwargs=told).sample
    expected.backward(to_torch(cotangent))

    @jax.jit
    def run(x, text):
        call = lambda x, text: model.apply({"params": params}, x, t, text, added)  # noqa: E731
        output, back = jax.vjp(call, x, text)
        return output, *back(jnp.asarray(cotangent))

    output, of_x, of_text = run(x, text)
    assert relative_error(output, from_torch(expected)) <= 1e-5
    assert relative_error(of_x, from_torch(torch_x.grad)) <= 1e-5
    assert relative_error(of_text, torch_text.grad) <= 1e-5


@pytest.mark.slow
def test_half_precision_and_recomputation():
    """bfloat16 rounds and no more; what is computed again has the same gradient."""
    plain = presets.make("tiny_sdxl")
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    added = Added(draw(2, 8), np.float32(SIZES))
    inputs = draw(2, 8, 8, 4), np.float32([17, 803]), draw(2, 5, 16), added
    variables = drawn(lambda: plain.init(jax.random.key(0), *inputs), rng)

    def gradient(**fields):
        model = plain.clone(**fields)
        loss = lambda variables: jnp.square(model.apply(variables, *inputs)).sum()  # noqa: E731
        return jax.jit(jax.grad(loss))(variables)

    assert_same_up_to_rounding(gradient(remat=(True, False)), gradient())
    output = jax.jit(plain.apply)(variables, *inputs)
    for dtype in ("bfloat16", "float16"):
        rounded = jax.jit(plain.clone(dtype=dtype).apply)(variables, *inputs)
        assert rounded.dtype == jnp.float32
        assert 1e-4 < relative_error(rounded, output) < (0.03 if dtype == "bfloat16" else 4e-3)


FULL = dict(
    UNET,
    block_out_channels=[320, 640, 1280, 1280],
    layers_per_block=2,
    norm_num_groups=32,
    down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
)
FULL_SIZE = {
    "sd15": dict(FULL, attention_head_dim=8, cross_attention_dim=768),
    "sd21": dict(
        FULL,
        attention_head_dim=[5, 10, 20, 20],
        cross_attention_dim=1024,
        use_linear_projection=True,
        upcast_attention=True,
    ),
    "sdxl": dict(
        FULL,
        block_out_channels=[320, 640, 1280],
        down_block_types=["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
        up_block_types=["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
        attention_head_dim=[5, 10, 20],
        cross_attention_dim=2048,
        transformer_layers_per_block=[1, 2, 10],
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    ),
}
# Of the public weights, in millions.
PARAMETERS = {"sd15": 859.5, "sd21": 865.9, "sdxl": 2567.5}


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL_SIZE)
def test_every_tensor_of_the_full_size(name):
    with torch.device("meta"):
        peer = UNet2DConditionModel(**FULL_SIZE[name])
    model, shapes = build_latent_unet(json.loads(peer.to_json_string()), "config.json")
    mappings = tensor_mappings(shapes, layout_of(model).rules)
    assert {name: mapping.file_shape for name, mapping in mappings.items()} == {
        name: tuple(tensor.shape) for name, tensor in peer.state_dict().items()
    }
    assert model == presets.make(name)
    assert jax.tree.map(jnp.shape, presets.parameter_shapes(name)) == jax.tree.map(
        jnp.shape, shapes
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6 == pytest.approx(
        PARAMETERS[name], abs=0.05
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("_class_name", "UNet2DModel"),
        ("act_fn", "gelu"),
        ("addition_embed_type", "image"),
        ("attention_head_dim", [2]),
        ("attention_head_dim", 3),
        ("block_out_channels", None),
        ("cross_attention_dim", [16, 32]),
        ("down_block_types", ["CrossAttnDownBlock2D", "AttnDownBlock2D"]),
        ("down_block_types", ["CrossAttnDownBlock2D"]),
        ("layers_per_block", [1, 2]),
        ("mid_block_only_cross_attention", True),
        ("projection_class_embeddings_input_dim", 48),
        ("transformer_layers_per_block", [1]),
        ("up_block_types", ["CrossAttnUpBlock2D", "UpBlock2D"]),
        ("a_field_of_the_future", "new"),
    ],
)
def test_what_is_not_implemented(field, value):
    config = {**UNETS["sdxl"], "_class_name": "UNet2DConditionModel", field: value}
    if field in ("down_block_types", "up_block_types"):
        config = {**UNETS["sd15"], "_class_name": "UNet2DConditionModel", field: value}
    named = "its fields do not fit" if value == 3 or value is None else field
    named = "up_block_types" if value == ["CrossAttnDownBlock2D"] else named
    with pytest.raises(InputError, match=rf"^x/config\.json: .*{named}") as error:
        build_latent_unet(config, "x/config.json")
    assert "\n" not in str(error.value)


def test_inputs_that_do_not_fit(tmp_path):
    model = presets.make("tiny_sdxl")
    x, t, text = jnp.zeros((1, 8, 8, 4)), jnp.zeros(1), jnp.zeros((1, 5, 16))
    with pytest.raises(ValueError, match="added must be given if and only if the model has a size"):
        jax.eval_shape(model.init, jax.random.key(0), x, t, text)
    with pytest.raises(ValueError, match=r"latents must be a multiple of .*got 7x8"):
        plain = presets.make("tiny_sd15")
        jax.eval_shape(plain.init, jax.random.key(0), x[:, :7], t, text)
    tiny_unet("sd15").save_pretrained(tmp_path)
    with pytest.raises(
        InputError, match=r"the model must be a UNet .*, got a LatentUNet; choose a"
    ):
        weights.load_unet(tmp_path)
