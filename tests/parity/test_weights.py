"""Weights in and out, against diffusers and transformers."""

import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, IFPipeline, IFSuperResolutionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from imagen_ft import weights
from imagen_ft.models import presets
from imagen_ft.weights.__main__ import main
from imagen_ft.weights.t5_config import build_t5
from imagen_ft.weights.tensor_rules import layout_of
from imagen_ft.weights.unet_config import build_unet
from launch.errors import InputError
from launch.runtime.checkpoints.tensor_mapping import check_fit, tensor_mappings
from tests.parity.torch_weights import relative_error
from tests.parity.weights_models import make_run, ours, theirs, tiny_t5, tiny_unet


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Pipelines of both stages, as diffusers saves them; no safety checker."""
    folder = tmp_path_factory.mktemp("saved")
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "dog": 4}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    learned = DDPMScheduler(
        variance_type="learned_range",
        beta_schedule="squaredcos_cap_v2",
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=1.5,
    )
    rest = dict(
        tokenizer=tokenizer,
        text_encoder=tiny_t5(),
        scheduler=learned,
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )
    IFPipeline(unet=tiny_unet(1), **rest).save_pretrained(folder / "1")
    noising = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    pipeline = IFSuperResolutionPipeline(unet=tiny_unet(2), image_noising_scheduler=noising, **rest)
    pipeline.save_pretrained(folder / "2")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_a_unet_computes_what_diffusers_computes(saved, stage, tmp_path):
    expected = theirs(tiny_unet(stage), stage)
    assert relative_error(ours(saved / str(stage), stage), expected) <= 1e-5
    # Its own folder, in several files.
    tiny_unet(stage).save_pretrained(tmp_path, max_shard_size="400KB", variant="bf16")
    assert (tmp_path / "diffusion_pytorch_model.safetensors.index.bf16.json").exists()
    assert relative_error(ours(tmp_path, stage, variant="bf16"), expected) <= 1e-5


def test_a_t5_computes_what_transformers_computes(saved, tmp_path):
    model, params = weights.load_t5(saved / "1")
    tokens = np.array([[3, 4, 1, 0], [4, 1, 0, 0]], np.int32)
    output = jax.jit(model.apply)({"params": params}, tokens, tokens > 0)
    peer = tiny_t5()
    expected = peer(torch.from_numpy(tokens).long(), torch.from_numpy(tokens > 0).long())[0]
    assert relative_error(output, expected) <= 1e-5


IF_I = dict(
    sample_size=64,
    in_channels=3,
    out_channels=6,
    down_block_types=["ResnetDownsampleBlock2D"] + 3 * ["SimpleCrossAttnDownBlock2D"],
    up_block_types=3 * ["SimpleCrossAttnUpBlock2D"] + ["ResnetUpsampleBlock2D"],
    mid_block_type="UNetMidBlock2DSimpleCrossAttn",
    layers_per_block=3,
    act_fn="gelu",
    encoder_hid_dim=4096,
    encoder_hid_dim_type="text_proj",
    attention_head_dim=64,
    addition_embed_type="text",
    addition_embed_type_num_heads=64,
    resnet_time_scale_shift="scale_shift",
    cross_attention_norm="group_norm",
)
IF_II = dict(
    IF_I,
    sample_size=256,
    in_channels=6,
    down_block_types=3 * ["ResnetDownsampleBlock2D"] + 2 * ["SimpleCrossAttnDownBlock2D"],
    up_block_types=2 * ["SimpleCrossAttnUpBlock2D"] + 3 * ["ResnetUpsampleBlock2D"],
    class_embed_type="timestep",
    time_embedding_act_fn="gelu",
    resnet_skip_time_act=True,
    resnet_out_scale_factor=1.41422712,
    mid_block_scale_factor=1.41422712,
)
FULL_SIZE = {
    "if_i_m": dict(IF_I, block_out_channels=[192, 384, 576, 768], cross_attention_dim=768),
    "if_i_l": dict(IF_I, block_out_channels=[320, 640, 960, 1280], cross_attention_dim=1280),
    "if_i_xl": dict(IF_I, block_out_channels=[704, 1408, 2112, 2816], cross_attention_dim=2816),
    "if_ii_m": dict(
        IF_II,
        block_out_channels=[128, 256, 512, 768, 768],
        layers_per_block=[2, 2, 3, 4, 2],
        cross_attention_dim=768,
        time_embedding_dim=768,
    ),
    "if_ii_l": dict(
        IF_II,
        block_out_channels=[160, 320, 640, 960, 1280],
        layers_per_block=[2, 2, 3, 5, 5],
        cross_attention_dim=1280,
        time_embedding_dim=1280,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL_SIZE)
def test_every_tensor_of_the_full_sized_unets(name):
    with torch.device("meta"):
        peer = UNet2DConditionModel(**FULL_SIZE[name])
    model, shapes = build_unet(json.loads(peer.to_json_string()), "config.json")
    mappings = tensor_mappings(shapes, layout_of(model).rules)
    assert {name: mapping.file_shape for name, mapping in mappings.items()} == {
        name: tuple(tensor.shape) for name, tensor in peer.state_dict().items()
    }
    assert model == presets.make(name)


def test_every_tensor_of_t5_xxl():
    sizes = dict(d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64)
    config = T5Config(vocab_size=32128, feed_forward_proj="gated-gelu", **sizes)
    with torch.device("meta"):
        peer = T5EncoderModel(config)
    model, shapes = build_t5(config.to_dict(), "config.json")
    peer_shapes = {name: tuple(tensor.shape) for name, tensor in peer.state_dict().items()}
    layout = layout_of(model)
    mappings = tensor_mappings(shapes, layout.rules)
    check_fit(mappings, peer_shapes, "", aliases=layout.aliases(mappings))
    assert model == presets.make("t5_xxl")


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def assert_same_files(ours, theirs):
    ours, theirs = files(ours), files(theirs)
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if ours[name] != theirs[name]] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float32, {}),
        pytest.param(torch.float16, dict(variant="fp16"), marks=pytest.mark.slow),
        pytest.param(torch.bfloat16, dict(max_shard_size="30KB"), marks=pytest.mark.slow),
    ],
    ids=["one file", "one file of a variant", "several"],
)
def test_import_and_export_keep_every_byte(tmp_path, dtype, options):
    # transformers saves some matrices of its half-precision T5 in float32, and so must we.
    tiny_unet(1).to(dtype).save_pretrained(tmp_path / "saved/unet", **options)
    tiny_t5().to(dtype).save_pretrained(tmp_path / "saved/text_encoder", **options)
    variant = [f"--variant={options['variant']}"] if "variant" in options else []
    imported, exported = tmp_path / "imported", tmp_path / "exported"
    main(["weights", f"--from=deepfloyd:{tmp_path}/saved", f"--to={imported}", *variant])
    main(["weights", f"--from={imported}", f"--to=deepfloyd:{exported}"])
    assert_same_files(exported, tmp_path / "saved")
    # What was imported is what the files hold, in both types.
    for load in (weights.load_unet, weights.load_t5):
        for asked in (None, "stored"):
            arguments = dict(dtype=asked, variant=options.get("variant"))
            expected = load(tmp_path / "saved", **arguments)
            loaded = load(imported, **arguments)
            assert loaded[0] == expected[0]
            same = jax.tree.map(
                lambda a, b: a.dtype == b.dtype and bool(jnp.array_equal(a, b)),
                loaded[1],
                expected[1],
            )
            assert all(jax.tree.leaves(same))


def test_a_pipeline_imports_and_exports(saved, tmp_path):
    """With tokenizer, schedulers and index; what is no file of ours is null in the index."""
    main(["weights", f"--from=deepfloyd:{saved}/2", f"--to={tmp_path}/imported"])
    main(["weights", f"--from={tmp_path}/imported", f"--to=deepfloyd:{tmp_path}/exported"])
    assert_same_files(tmp_path / "exported", saved / "2")
    assert weights.part_folder(tmp_path / "imported", "tokenizer").name == "tokenizer"

    index = tmp_path / "imported/source/model_index.json"
    table = json.loads(index.read_bytes())
    table["safety_checker"] = ["deepfloyd_if", "IFSafetyChecker"]
    index.write_text(json.dumps(table))
    main(["weights", f"--from={tmp_path}/imported", f"--to=deepfloyd:{tmp_path}/again"])
    exported = json.loads((tmp_path / "again/model_index.json").read_bytes())
    assert exported == {**table, "safety_checker": [None, None]}


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_a_run_draws_in_diffusers(saved, tmp_path, stage):
    _, params = weights.load_unet(saved / str(stage))
    params = jax.tree.map(lambda leaf: leaf * 1.01, params)
    run = make_run(tmp_path / "run", stage, params)
    main(["weights", f"--from=deepfloyd:{saved}/{stage}", f"--to={tmp_path}/imported"])
    pipeline = f"--pipeline={saved}/{stage}" if stage == 1 else f"--pipeline={tmp_path}/imported"
    main(["weights", f"--from={run}", f"--to=deepfloyd:{tmp_path}/exported", pipeline])

    exported = UNet2DConditionModel.from_pretrained(tmp_path / "exported/unet")
    assert relative_error(ours(run, stage), theirs(exported, stage)) <= 1e-5
    assert relative_error(theirs(exported, stage), theirs(tiny_unet(stage), stage)) > 1e-3
    kind = IFPipeline if stage == 1 else IFSuperResolutionPipeline
    loaded = kind.from_pretrained(tmp_path / "exported", safety_checker=None)
    loaded.set_progress_bar_config(disable=True)
    low = {} if stage == 1 else dict(image=torch.zeros(1, 3, 4, 4), height=8, width=8)
    image = loaded(
        "a dog",
        num_inference_steps=2,
        generator=torch.manual_seed(0),
        output_type="np",
        **low,
    ).images
    assert image.shape == (1, 8, 8, 3) and np.isfinite(image).all() and image.std() > 0


def test_a_pipeline_with_another_variant_of_the_text_encoder(saved, tmp_path):
    _, params = weights.load_unet(saved / "1")
    run = make_run(tmp_path / "run", 1, params)
    pipeline = shutil.copytree(saved / "1", tmp_path / "pipeline")
    fp16 = "text_encoder/model.fp16.safetensors"
    (pipeline / "text_encoder/model.safetensors").rename(pipeline / fp16)
    exported = tmp_path / "exported"
    main(["weights", f"--from={run}", f"--to=deepfloyd:{exported}", f"--pipeline={pipeline}"])
    assert (exported / fp16).read_bytes() == (pipeline / fp16).read_bytes()
    assert (exported / "unet/diffusion_pytorch_model.safetensors").exists()


def test_other_types_and_names(saved, tmp_path, monkeypatch):
    """An import as bfloat16, in several files that both libraries read."""
    monkeypatch.setattr("launch.runtime.checkpoints.safetensors_io.MAX_FILE_BYTES", 200_000)
    main(["weights", f"--from=deepfloyd:{saved}/1", f"--to={tmp_path}/imported"])
    exported = tmp_path / "exported"
    main(["weights", f"--from={tmp_path}/imported", f"--to=deepfloyd:{exported}", "--variant=bf16"])
    files = [name for name in os.listdir(exported / "unet") if name.endswith(".safetensors")]
    assert len(files) > 3 and all((exported / "unet" / name).stat().st_size < 3e5 for name in files)
    for library, part, peer in (
        (UNet2DConditionModel, "unet", tiny_unet(1)),
        (T5EncoderModel, "text_encoder", tiny_t5()),
    ):
        state = library.from_pretrained(exported / part, variant="bf16").float().state_dict()
        for name, tensor in peer.state_dict().items():
            assert torch.equal(state[name], tensor.bfloat16().float()), name
    config = json.loads((exported / "text_encoder/config.json").read_bytes())
    assert config.get("dtype", config.get("torch_dtype")) == "bfloat16"
    # One type for all: a half-precision T5 of transformers would keep some in float32.
    stored = weights.load_t5(exported, "stored", variant="bf16")[1]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(stored)} == {"bfloat16"}


@pytest.mark.slow
def test_a_pipeline_that_does_not_fit_a_run(saved, tmp_path):
    _, params = weights.load_unet(saved / "1")
    run = make_run(tmp_path / "run", 1, params)
    command = ["weights", f"--from={run}", f"--to=deepfloyd:{tmp_path}/exported"]
    with pytest.raises(InputError, match=r"IFSuperResolutionPipeline, but .*run is a base model"):
        main([*command, f"--pipeline={saved}/2"])
    other = shutil.copytree(saved / "1", tmp_path / "other")
    tiny_t5(d_model=64).save_pretrained(other / "text_encoder")
    with pytest.raises(InputError, match=r"must make states 32 wide, .*got 64"):
        main([*command, f"--pipeline={other}"])
    unlike = make_run(tmp_path / "unlike", 1, params, cross_num_groups=8)
    with pytest.raises(InputError, match="unlike: cross_num_groups is 8, in diffusers"):
        main([command[0], f"--from={unlike}", command[2]])
    final = params["conv_out"]
    params = {**params, "conv_out": {name: leaf[..., :3] for name, leaf in final.items()}}
    eps_only = make_run(tmp_path / "eps_only", 1, params)
    command[1] = f"--from={eps_only}"
    with pytest.raises(
        InputError,
        match=r"eps_only must predict 6 channels, .*got 3",
    ):
        main([*command, f"--pipeline={saved}/1"])
    assert not (tmp_path / "exported").exists()
    main(command)  # without a pipeline it is a U-Net like any other
    peer = UNet2DConditionModel.from_pretrained(tmp_path / "exported/unet")
    expected = tiny_unet(1).state_dict()["conv_out.weight"][:3]
    assert torch.equal(peer.state_dict()["conv_out.weight"], expected)
