"""Our text encoders against transformers', through the files that it writes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from imagen_ft import weights
from imagen_ft.models import presets
from imagen_ft.weights.clip_text_config import build_clip_text
from imagen_ft.weights.tensor_rules import layout_of
from launch.errors import InputError
from launch.runtime.checkpoints.tensor_mapping import check_fit, tensor_mappings
from tests.parity.latent_models import CLIPS, tiny_clip
from tests.parity.torch_weights import relative_error

# Padded with the end token, and with another. Old files pool at the highest id, 63 of the first
# row, others at the first end token.
TOKENS = np.array([[61, 63, 7, 62, 62, 62, 62], [61, 9, 8, 7, 6, 62, 0]], np.int32)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CLIPS)
def test_states_and_the_gradient_of_the_embedding(kind, tmp_path):
    theirs = tiny_clip(kind)
    theirs.save_pretrained(tmp_path)
    model, params = weights.load_part("text_encoder", tmp_path)
    table = theirs.get_input_embeddings().weight.requires_grad_()
    output = theirs(torch.from_numpy(TOKENS).long(), output_hidden_states=True)
    pooled = output.text_embeds if kind == "openclip" else output.pooler_output
    expected = [output.last_hidden_state, output.hidden_states[-2], pooled]
    rng = np.random.default_rng(0)
    cotangents = [rng.normal(size=states.shape).astype(np.float32) for states in expected]
    torch.autograd.backward(expected, [torch.from_numpy(array) for array in cotangents])

    @jax.jit
    def run(table):
        def encode(table):
            changed = {**params, "embeddings_token_embedding": {"embedding": table}}
            return tuple(model.apply({"params": changed}, TOKENS))

        states, back = jax.vjp(encode, table)
        return states, back(tuple(map(jnp.asarray, cotangents)))[0]

    states, gradient = run(params["embeddings_token_embedding"]["embedding"])
    for ours, of_peer in zip(states, expected, strict=True):
        assert relative_error(ours, of_peer.detach()) <= 1e-5
    assert relative_error(gradient, table.grad) <= 1e-5


FULL_SIZE = {
    "clip_l": dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12),
    "openclip_h": dict(hidden_size=1024, num_hidden_layers=23, num_attention_heads=16),
    "openclip_g": dict(hidden_size=1280, num_hidden_layers=32, num_attention_heads=20),
}


@pytest.mark.parametrize(
    "name", ["clip_l", *(pytest.param(n, marks=pytest.mark.slow) for n in FULL_SIZE if n > "d")]
)
def test_every_tensor_of_the_full_size(name):
    fields = FULL_SIZE[name] | dict(intermediate_size=4 * FULL_SIZE[name]["hidden_size"])
    activation = "quick_gelu" if name == "clip_l" else "gelu"
    config = CLIPTextConfig(
        **fields, hidden_act=activation, projection_dim=1280, bos_token_id=0, eos_token_id=2
    )
    kind = CLIPTextModelWithProjection if name == "openclip_g" else CLIPTextModel
    with torch.device("meta"):
        peer = kind(config)
    config = json.loads(peer.config.to_json_string()) | dict(architectures=[kind.__name__])
    model, shapes = build_clip_text(config, "config.json")
    layout = layout_of(model)
    mappings = tensor_mappings(shapes, layout.rules)
    peer_shapes = {name: tuple(tensor.shape) for name, tensor in peer.state_dict().items()}
    check_fit(mappings, peer_shapes, "", aliases=layout.aliases(mappings))
    assert model == presets.make(name)


def test_files_of_old_versions_of_transformers(tmp_path):
    """With a prefix and the counted positions, as Stable Diffusion's have them."""
    tiny_clip("clip").save_pretrained(tmp_path / "new")
    new = safetensors.numpy.load_file(tmp_path / "new/model.safetensors")
    old = {f"text_model.{name}": tensor for name, tensor in new.items()}
    positions = "text_model.embeddings.position_ids"
    config = (tmp_path / "new/config.json").read_bytes()

    def load(name, tensors):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_bytes(config)
        safetensors.numpy.save_file(tensors, tmp_path / name / "model.safetensors")
        return weights.load_part("text_encoder", tmp_path / name)

    model, params = load("old", {**old, positions: np.arange(9)[None]})
    expected_model, expected = weights.load_part("text_encoder", tmp_path / "new")
    assert model == expected_model
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    with pytest.raises(InputError, match=r"position_ids must count from 0 to 8 in this model"):
        load("shuffled", {**old, positions: np.arange(9)[None, ::-1].copy()})
    with pytest.raises(
        InputError, match=r"must be a T5Encoder .*, got a ClipTextEncoder; choose a"
    ):
        weights.load_t5(tmp_path / "old")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_act", "silu"),
        ("hidden_act", ["gelu"]),
        ("hidden_size", 15),
        ("layer_norm_eps", 1e-6),
        ("max_position_embeddings", 0),
        ("num_hidden_layers", "many"),
    ],
)
def test_what_is_not_implemented(field, value):
    config = {**CLIPS["clip"][1], "model_type": "clip_text_model", field: value}
    named = {
        "hidden_size": "its fields do not fit",
        "max_position_embeddings": "clip_text.max_length",
        "num_hidden_layers": "clip_text.num_layers",
    }
    said = rf"^x/config\.json: {named.get(field, field)}"
    with pytest.raises(InputError, match=said) as error:
        build_clip_text(config, "x/config.json")
    assert "\n" not in str(error.value)


def test_a_text_that_is_too_long():
    tokens = jax.ShapeDtypeStruct((1, 13), "int32")
    with pytest.raises(ValueError, match="texts must have at most 12 tokens, got 13"):
        jax.eval_shape(presets.make("tiny_clip").init, jax.random.key(0), tokens)
