"""Our auto-encoder against diffusers', through the files that it writes."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
from diffusers import AutoencoderKL

from imagen_ft import weights
from imagen_ft.models import autoencoder, presets
from imagen_ft.models.autoencoder import decode_one_by_one
from imagen_ft.weights.autoencoder_config import build_autoencoder
from imagen_ft.weights.tensor_rules import layout_of
from launch.errors import InputError
from launch.runtime.checkpoints.tensor_mapping import tensor_mappings
from tests.parity.latent_models import LATENTS, VAE, from_torch, tiny_vae, to_torch
from tests.parity.torch_weights import relative_error

FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "vae"
    tiny_vae(scaling_factor=0.3, shift_factor=0.2).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_both_ways_and_their_gradients(saved, monkeypatch):
    """Decoded one at a time, with the attention in pieces; encoded without either."""
    monkeypatch.setattr(autoencoder, "PIECE", 20)  # 36 pixels are no multiple, 40 are
    theirs = tiny_vae()
    model, params = weights.load_part("vae", saved)
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    images, latents = draw(2, 12, 12, 3), draw(2, 4, 10, LATENTS)
    of_moments, of_images = draw(2, 6, 6, 2 * LATENTS), draw(2, 8, 20, 3)

    torch_images, torch_latents = to_torch(images), to_torch(latents)
    moments = theirs.encode(torch_images).latent_dist.parameters
    moments.backward(to_torch(of_moments))
    decoded = theirs.decode(torch_latents).sample
    decoded.backward(to_torch(of_images))

    def encode(images):
        """The moments before they are scaled."""
        mean, logvar = model.apply({"params": params}, images, method="encode")
        return jnp.concatenate([mean / 0.3 + 0.2, logvar - 2 * math.log(0.3)], -1)

    def decode(z):
        return decode_one_by_one(model, {"params": params}, (z - 0.2) * 0.3)

    @jax.jit
    def run(images, latents):
        encoded, back = jax.vjp(encode, images)
        decoded, back_again = jax.vjp(decode, latents)
        return encoded, *back(of_moments), decoded, *back_again(of_images)

    encoded, of_encoding, image, of_decoding = run(images, latents)
    assert relative_error(encoded, from_torch(moments)) <= 1e-5
    assert relative_error(of_encoding, from_torch(torch_images.grad)) <= 1e-5
    assert relative_error(image, from_torch(decoded)) <= 1e-5
    assert relative_error(of_decoding, from_torch(torch_latents.grad)) <= 1e-5


@pytest.mark.parametrize(
    ("name", "factor"), [("sd_vae", 0.18215), ("sdxl_vae", 0.13025)], ids=["sd", "sdxl"]
)
def test_every_tensor_of_the_full_size(name, factor):
    widths = dict(block_out_channels=(128, 256, 512, 512), layers_per_block=2)
    types = dict(
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4
    )
    with torch.device("meta"):
        peer = AutoencoderKL(**widths, **types, scaling_factor=factor)
    model, shapes = build_autoencoder(json.loads(peer.to_json_string()), "config.json")
    mappings = tensor_mappings(shapes, layout_of(model).rules)
    assert {name: mapping.file_shape for name, mapping in mappings.items()} == {
        name: tuple(tensor.shape) for name, tensor in peer.state_dict().items()
    }
    assert model == presets.make(name)


def test_files_of_old_versions_of_diffusers(saved, tmp_path):
    """Theirs are the names that Stable Diffusion 1.x has; diffusers itself reads them as well."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = safetensors.numpy.load_file(saved / FILE)
    for new_name, old_name in old.items():
        tensors = {n.replace(f".{new_name}.", f".{old_name}."): t for n, t in tensors.items()}
    assert sum(".proj_attn." in name for name in tensors) == 4
    safetensors.numpy.save_file(tensors, tmp_path / FILE, metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((saved / "config.json").read_bytes())
    found, expected = weights.load_part("vae", tmp_path), weights.load_part("vae", saved)
    jax.tree.map(np.testing.assert_array_equal, found[1], expected[1])
    same = AutoencoderKL.from_pretrained(tmp_path).state_dict()
    assert torch.equal(
        same["decoder.mid_block.attentions.0.to_out.0.weight"],
        torch.from_numpy(tensors["decoder.mid_block.attentions.0.proj_attn.weight"]),
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("_class_name", "AutoencoderTiny"),
        ("act_fn", "gelu"),
        ("down_block_types", ["DownEncoderBlock2D"]),
        ("up_block_types", ["UpDecoderBlock2D", "AttnUpDecoderBlock2D"]),
        ("in_channels", 1),
        ("latents_mean", [0.0]),
        ("norm_num_groups", 5),
        ("block_out_channels", 8),
        ("scaling_factor", 0.0),
        ("use_quant_conv", False),
        ("a_field_of_the_future", "new"),
    ],
)
def test_what_is_not_implemented(field, value):
    config = {**VAE, "_class_name": "AutoencoderKL", field: value}
    named = "its fields do not fit" if field in ("block_out_channels", "norm_num_groups") else field
    with pytest.raises(InputError, match=rf"^x/config\.json: {named}") as error:
        build_autoencoder(config, "x/config.json")
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_memory_of_large_images():
    """At 1,024 px, whatever the batch, three arrays of the largest level."""
    model = presets.make("sdxl_vae")
    params = {"params": presets.parameter_shapes("sdxl_vae")}

    def gigabytes(count):
        latents = jax.ShapeDtypeStruct((count, 128, 128, 4), "float32")
        program = jax.jit(lambda params, latents: decode_one_by_one(model, params, latents))
        return program.lower(params, latents).compile().memory_analysis().temp_size_in_bytes / 2**30

    assert gigabytes(1) < 3.1
    assert gigabytes(4) < 3.3


def test_float16_is_replaced_where_it_overflows():
    model = presets.make("tiny_vae", dtype="float16")
    for upcast, dtype in ((True, "float32"), (False, "float16")):
        assert model.clone(force_upcast=upcast).computed_in == jnp.dtype(dtype)
    assert presets.make("tiny_vae", dtype="bfloat16").computed_in == jnp.bfloat16
