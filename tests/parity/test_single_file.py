"""Checkpoints of Stable Diffusion's original layout, against diffusers' own conversion of them."""

import json

import pytest
import safetensors.torch
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from imagen_ft import weights
from imagen_ft.models import presets
from imagen_ft.weights.__main__ import main, run
from imagen_ft.weights.latent_parts import latent_settings
from imagen_ft.weights.original_configs import (
    autoencoder_config,
    clip_config,
    open_clip_config,
    unet_config,
)
from imagen_ft.weights.original_names import (
    OPEN_CLIP_RULES,
    autoencoder_rules,
    origin_of,
    unet_rules,
)
from imagen_ft.weights.pipeline_parts import PARTS
from imagen_ft.weights.single_file import unpack
from imagen_ft.weights.tensor_rules import layout_of
from launch.runtime.checkpoints.tensor_mapping import tensor_mappings
from tests.parity.latent_models import CLIP, UNETS, VAE
from tests.parity.test_latent_weights import NOISE
from tests.parity.torch_weights import randomize

# The smallest widths of 32 groups and of heads 64 wide, which no shape tells.
WIDE = dict(block_out_channels=[32, 64], norm_num_groups=32)
KINDS = {
    "sd15": dict(UNETS["sd15"], **WIDE, attention_head_dim=8),
    "sd21": dict(UNETS["sd21"], **WIDE, attention_head_dim=[1, 1]),
    "sdxl": dict(UNETS["sdxl"], **WIDE, attention_head_dim=[1, 1]),
}
CLASS = dict(_class_name="UNet2DConditionModel")
UNET, VAE_NAME = "model.diffusion_model.", "first_stage_model."
CLIPS = {
    "sd15": [("text_encoder", "cond_stage_model.transformer.")],
    "sd21": [("text_encoder", "cond_stage_model.model.")],
    "sdxl": [
        ("text_encoder", "conditioner.embedders.0.transformer."),
        ("text_encoder_2", "conditioner.embedders.1.model."),
    ],
}


def models(kind):
    """The parts of a tiny pipeline."""
    torch.manual_seed(0)
    fields = dict(CLIP, num_attention_heads=1, eos_token_id=2)
    made = dict(unet=UNet2DConditionModel(**KINDS[kind]))
    made["vae"] = AutoencoderKL(**dict(VAE, **WIDE))
    act = "gelu" if kind == "sd21" else "quick_gelu"
    made["text_encoder"] = CLIPTextModel(CLIPTextConfig(**fields, hidden_act=act))
    if kind == "sdxl":
        config = CLIPTextConfig(**fields, hidden_act="gelu")
        made["text_encoder_2"] = CLIPTextModelWithProjection(config)
    return {name: randomize(model, seed) for seed, (name, model) in enumerate(made.items())}


def original(tensors, rules, prefix):
    """A part of a file: tensors of diffusers' names, by where each of them is."""
    made, thirds = {}, {}
    for name, tensor in tensors.items():
        place = origin_of(name, rules)
        if place.third is not None:
            thirds.setdefault(place.name, {})[place.third] = tensor
        elif ".mid.attn_1." in place.name and tensor.ndim == 2:
            made[prefix + place.name] = tensor[:, :, None, None]
        else:
            made[prefix + place.name] = (tensor.T if place.is_transposed else tensor).contiguous()
    for name, parts in thirds.items():
        made[prefix + name] = torch.cat([parts[third] for third in range(3)])
    return made


def text_states(model):
    """With the prefix that transformers 5 leaves out of some."""
    return {
        name if name.startswith("text_") else f"text_model.{name}": tensor
        for name, tensor in model.state_dict().items()
    }


def write_file(folder, kind, dtype=torch.float32):
    """A file of the original layout, and the models' tensors by part."""
    made = {name: model.to(dtype) for name, model in models(kind).items()}
    states = {name: text_states(model) for name, model in made.items() if "text" in name}
    states |= {name: made[name].state_dict() for name in ("unet", "vae")}
    config, layers = KINDS[kind], KINDS[kind]["layers_per_block"]
    attention = ["Cross" in block for block in config["down_block_types"]]
    unet = original(states["unet"], unet_rules(layers, attention), UNET)
    vae = original(states["vae"], autoencoder_rules(2), VAE_NAME)
    # diffusers' own way back ends at the same names and numbers.
    assert_equal(single_file_utils.convert_ldm_unet_checkpoint(unet, config), states["unet"])
    assert_equal(single_file_utils.convert_ldm_vae_checkpoint(vae, VAE), states["vae"])
    tensors = unet | vae
    for name, prefix in CLIPS[kind]:
        if prefix.endswith("transformer."):
            own = {prefix + key: tensor for key, tensor in states[name].items()}
            own[f"{prefix}text_model.embeddings.position_ids"] = torch.arange(9)[None]
            back = single_file_utils.convert_ldm_clip_checkpoint(own)
            del back["text_model.embeddings.position_ids"]
        else:
            own = original(states[name], OPEN_CLIP_RULES, prefix)
            back = single_file_utils.convert_open_clip_checkpoint(made[name], own, prefix)
            own[f"{prefix}logit_scale"] = torch.ones((), dtype=dtype)
        assert_equal(back, states[name])
        tensors |= own
    if kind == "sd21":
        # The last layer, and the projection behind it, which nobody takes.
        last = f"{CLIPS[kind][0][1]}transformer.resblocks."
        tensors |= {
            name.replace(".resblocks.2.", ".resblocks.3."): tensor.clone()
            for name, tensor in tensors.items()
            if name.startswith(f"{last}2.")
        }
        tensors["cond_stage_model.model.text_projection"] = torch.zeros((16, 10), dtype=dtype)
    tensors["model_ema.diffusion_modelout2bias"] = torch.zeros(4)
    tensors["alphas_cumprod"] = torch.zeros(1000)
    safetensors.torch.save_file(tensors, folder / "any-name.safetensors")
    return folder / "any-name.safetensors", states, tensors


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def lend(folder, prediction):
    """A pipeline's small files."""
    (folder / "scheduler").mkdir(parents=True)
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer/tokenizer_config.json").write_text("{}")
    scheduler = dict(NOISE, _class_name="DDIMScheduler", prediction_type=prediction)
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    index = dict(_class_name="StableDiffusionPipeline", unet=["a", "b"], tokenizer=["a", "b"])
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("sd15", torch.float16), ("sd21", torch.float32), ("sdxl", torch.float32)],
)
def test_a_file_becomes_a_pipeline(kind, dtype, tmp_path):
    file, states, _ = write_file(tmp_path, kind, dtype)
    lender = lend(tmp_path / "lender", "v_prediction") if kind == "sd21" else None
    (tmp_path / "unpacked").mkdir()
    unpack(file, tmp_path / "unpacked", lender and str(lender))
    for name, expected in states.items():
        (path,) = (tmp_path / "unpacked" / name).glob("*.safetensors")
        assert_equal(safetensors.torch.load_file(path), expected)
        config = json.loads((path.parent / "config.json").read_text())
        model, _ = PARTS[name].build(config, name)
        if name == "unet":
            assert model == PARTS[name].build(json.loads(json.dumps(KINDS[kind] | CLASS)), "")[0]
            assert config["sample_size"] == {"sd15": 64, "sd21": 96, "sdxl": 128}[kind]
        elif name == "vae":
            assert model.scaling_factor == (0.13025 if kind == "sdxl" else 0.18215)
        else:
            open_clip = kind == "sd21" or name == "text_encoder_2"
            activation = "gelu" if open_clip else "quick_gelu"
            assert (model.activation, model.num_layers) == (activation, 3)
    index = json.loads((tmp_path / "unpacked/model_index.json").read_text())
    assert ("XL" in index["_class_name"]) == (kind == "sdxl")
    scheduler = json.loads((tmp_path / "unpacked/scheduler/scheduler_config.json").read_text())
    prediction = "v" if kind == "sd21" else "eps"
    assert latent_settings(scheduler, "")["prediction"] == prediction


@pytest.mark.slow
def test_a_file_is_imported_and_exported(tmp_path):
    file, states, _ = write_file(tmp_path, "sd21")
    option = f"--pipeline={lend(tmp_path / 'lender', 'v_prediction')}"
    command = ["weights", f"--from=diffusers:{file}", f"--to={tmp_path}/imported", option]
    main(command)
    main(command)  # It is there already.
    main(["weights", f"--from={tmp_path}/imported", f"--to=diffusers:{tmp_path}/exported"])
    for name, expected in states.items():
        (path,) = (tmp_path / "exported" / name).glob("*.safetensors")
        assert_equal(safetensors.torch.load_file(path), expected)
        weights.load_part(name, tmp_path / "imported")
    assert (tmp_path / "exported/tokenizer").exists()
    assert json.loads((tmp_path / "imported/weights.json").read_text())["from"] == str(file)


def test_files_that_are_refused(tmp_path, capsys):
    """One line and exit code 2; nothing is written."""
    file, _, tensors = write_file(tmp_path, "sd21")
    pickle = tmp_path / "sd.ckpt"
    pickle.write_bytes(b"")

    def assert_fails(said, path=file, *options):
        capsys.readouterr()
        command = ["weights", f"--from=diffusers:{path}", f"--to={tmp_path}/imported"]
        assert run([*command, *options]) == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert len(error) == 1 and said in error[0]
        assert not (tmp_path / "imported").exists()

    def changed(name, tensor):
        new = {key: value for key, value in tensors.items() if key != name}
        new |= {} if tensor is None else {name: tensor}
        safetensors.torch.save_file(new, tmp_path / "changed.safetensors")
        return tmp_path / "changed.safetensors"

    lender = lend(tmp_path / "lender", "epsilon")
    assert_fails("the file does not say whether the weights predict eps or v; set --pipeline")
    assert_fails(
        "sd.ckpt is a pickle, which could run any code when it is read; convert it", pickle
    )
    assert_fails("--variant is for folders and repositories", file, "--variant=fp16")
    option = f"--pipeline={lender}"
    name = "middle_block.0.in_layers.2.weight"
    assert_fails(
        f"the tensor {UNET}{name} of Stable Diffusion is missing",
        changed(UNET + name, None),
        option,
    )
    path = changed(UNET + "out.0.weight", torch.zeros(8))
    assert_fails(
        "out.0.weight must have the shape (32,) of Stable Diffusion, got (8,)", path, option
    )
    path = changed(VAE_NAME + "loss.weight", torch.zeros(8))
    assert_fails("first_stage_model.loss.weight is not part of a vae of Stable", path, option)
    path = changed("control_model.weight", torch.zeros(8))
    assert_fails(
        "is not a checkpoint of Stable Diffusion 1.x, 2.x or XL base in the original", path
    )
    index = json.loads((lender / "model_index.json").read_text())
    index["_class_name"] = "StableDiffusionXLPipeline"
    (lender / "model_index.json").write_text(json.dumps(index))
    assert_fails("must be a StableDiffusionPipeline, like", file, option)


def shapes_of(preset, rules, prefix):
    """Of a preset's tensors in a file, without values, and of diffusers'."""
    model = presets.make(preset)
    mappings = tensor_mappings(presets.parameter_shapes(preset), layout_of(model).rules)
    theirs = {name: torch.empty(m.file_shape, device="meta") for name, m in mappings.items()}
    return model, theirs, original(theirs, rules, prefix)


def short(tensors, prefix):
    return {name.removeprefix(prefix): tuple(t.shape) for name, t in tensors.items()}


def assert_same_shapes(found, expected):
    assert short(found, "") == short(expected, "")


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["sd15", "sd21", "sdxl"])
def test_full_size_unets_are_known_by_their_shapes(preset):
    model = presets.make(preset)
    places = model.layers_per_block, model.attention
    model, theirs, file = shapes_of(preset, unet_rules(*places), UNET)
    config = unet_config(short(file, UNET), model.size_embedding_dim and 1280)
    assert PARTS["unet"].build(config, preset)[0] == model
    assert_same_shapes(single_file_utils.convert_ldm_unet_checkpoint(file, config), theirs)


@pytest.mark.slow
def test_full_size_parts_are_known_by_their_shapes():
    levels = len(presets.make("sdxl_vae").block_out_channels)
    model, theirs, file = shapes_of("sdxl_vae", autoencoder_rules(levels), VAE_NAME)
    config = autoencoder_config(short(file, VAE_NAME), 0.13025)
    assert PARTS["vae"].build(config, "vae")[0] == model
    assert_same_shapes(single_file_utils.convert_ldm_vae_checkpoint(file, config), theirs)
    model, theirs, file = shapes_of("clip_l", (), "")
    assert PARTS["text_encoder"].build(clip_config(short(file, "")), "clip")[0] == model
    model, theirs, file = shapes_of("openclip_g", OPEN_CLIP_RULES, "p.")
    config = open_clip_config(short(file, "p."), is_pooled=True)
    assert PARTS["text_encoder_2"].build(config, "clip")[0] == model
    with torch.device("meta"):
        peer = CLIPTextModelWithProjection(CLIPTextConfig(**config))
    back = single_file_utils.convert_open_clip_checkpoint(peer, file, "p.")
    assert_same_shapes(back, theirs)
    # A checkpoint of 2.x has one layer more than the encoder of diffusers.
    shapes = short(shapes_of("openclip_h", OPEN_CLIP_RULES, "p.")[2], "p.")
    shapes["transformer.resblocks.23.ln_1.weight"] = (1024,)
    config = open_clip_config(shapes, is_pooled=False)
    assert PARTS["text_encoder"].build(config, "clip")[0] == presets.make("openclip_h")
