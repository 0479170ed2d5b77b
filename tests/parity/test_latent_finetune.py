"""imagen_ft.finetune on latents, from a tiny pipeline that diffusers has saved, from end to end."""

import json
import shutil

import jax
import pytest
from diffusers import UNet2DConditionModel
from etils import epath
from ml_collections import ConfigDict

from imagen_ft import finetune, weights
from imagen_ft.cascade import Cascade
from imagen_ft.text.encoders import make_text_encoder
from imagen_ft.training import train_stage
from imagen_ft.training.sampled_metric import metric_name
from imagen_ft.training.training import Training
from imagen_ft.weights.__main__ import main
from launch.runtime.devices.mesh import make_mesh
from launch.runtime.run import Run
from tests.classifiers.evaluation import tiny
from tests.imagen_ft import tiny_training
from tests.parity.latent_models import LENGTH, save_pipeline, tiny_vae
from tests.support import commands

UNET = dict(
    block_out_channels=(16, 32),
    attention=(True, False),
    num_heads=2,
    layers_per_block=2,
    num_groups=4,
    dtype="float32",
)
VAE = dict(block_out_channels=(16, 32), layers_per_block=1, num_groups=4, out_channels=1)
STEPS = 4


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "pipeline"
    save_pipeline(folder, "sd15", "epsilon")
    shutil.rmtree(folder / "vae")
    # The digits are grey.
    tiny_vae(in_channels=1, out_channels=1).save_pretrained(folder / "vae")
    return folder


def get_config(arg=""):
    """Four steps; saved at every second, drawn and measured at the end."""
    config = tiny_training.get_config()
    config.stage = ConfigDict(
        dict(
            size=4,
            low_size=0,
            channels=4,
            schedule="scaled_linear",
            prediction="eps",
            unet=UNET,
            autoencoder=VAE,
        )
    )
    path, _, lora = arg.partition(",")
    config.init_from = f"diffusers:{path}"
    config.text = ConfigDict(dict(weights=path, dtype="float32", max_length=LENGTH))
    config.loss.vlb_weight = 0.0
    config.total_steps, config.checkpoint_every, config.evaluate_every = STEPS, 2, STEPS
    config.pictures_every, config.batch_size, config.accumulation = STEPS, 8, 1
    config.pictures = dict(
        count=2, sampler=dict(name="ddim", num_steps=2, eta=0.0), guidance_weight=2.0
    )
    if lora:
        config.lora = dict(rank=2, alpha=2.0)
    return config


def train(config, folder):
    training = Training.of(config)
    mesh = make_mesh({}, jax.devices()[:1])
    train_stage.train_stage(training, make_text_encoder(config.text), mesh, epath.Path(folder))
    return Run.open(folder)


def losses(run):
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    return [record["loss"] for line in lines if "loss" in (record := json.loads(line))]


@pytest.mark.slow
def test_a_run_on_latents(pipeline, tmp_path):
    """It is evaluated, drawn, measured and resumed, sampled and exported."""
    config = get_config(str(pipeline))
    extractor = tiny.write_run(tmp_path / "extractor", tiny.variables, model=tiny.FIELDS)
    config.evaluation_metric = dict(
        measure="sliced",
        every=STEPS,
        num_images=10,
        batch_size=5,
        extractor=dict(name="classifier", path=str(extractor)),
        sampling=dict(config.pictures.to_dict(), stored_size=8),
        sliced=dict(num_directions=20, seed=2020),
    )
    run = train(config, tmp_path / "run")
    assert run.inputs["autoencoder"] == weights.digest(pipeline, "vae")
    records = [json.loads(x) for x in (run.path / "metrics.jsonl").read_text().splitlines()]
    named = {name for record in records for name in record}
    assert {
        "validation_loss",
        "validation_loss_slow",
        metric_name(config.evaluation_metric),
    } <= named
    # The last steps again, from the checkpoint before them.
    digest, before = run.digest(), losses(run)
    copy = shutil.copytree(run.path, tmp_path / "copy")
    (last,) = [path for path in (copy / "checkpoints").iterdir() if path.name.endswith(str(STEPS))]
    shutil.rmtree(last)
    again = train(config, copy)
    assert again.digest() == digest and losses(again)[-1] == before[-1]
    # The auto-encoder is no part of it.
    assert run.shapes()["params"].keys() == weights.load_part("unet", pipeline)[1].keys()
    image = Cascade.load(str(run.path)).sample("three")
    assert image.shape[1:] == (8, 8, 1)
    target = f"--to=diffusers:{tmp_path}/exported"
    main(["weights", f"--from={run.path}", target, f"--pipeline={pipeline}"])
    peer = UNet2DConditionModel.from_pretrained(tmp_path / "exported/unet")
    assert peer.config.sample_size == 4
    assert (tmp_path / "exported/vae/diffusion_pytorch_model.safetensors").exists()


@pytest.mark.slow
def test_adapters_on_latents(pipeline, tmp_path):
    config = get_config(f"{pipeline},lora")
    config.pictures_every, config.latents = 0, dict(sample=False)
    run = train(config, tmp_path / "run")
    assert set(run.shapes()["params"]) < set(weights.load_part("unet", pipeline)[1])
    main(["weights", f"--from={run.path}", f"--to=diffusers:{tmp_path}/exported"])
    assert (tmp_path / "exported/pytorch_lora_weights.safetensors").exists()


def test_bad_input(pipeline, tmp_path, capsys):
    """One line and exit code 2, before anything is written."""
    file = f"{__file__}:{pipeline}"

    def assert_fails(said, *arguments):
        assert commands.run(finetune.main, file, tmp_path / "run", *arguments) == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert len(error) == 1 and said in error[0], error
        assert not (tmp_path / "run").exists()

    assert_fails(
        "layers_per_block is 2, the weights of", "--config.stage.autoencoder.layers_per_block=2"
    )
