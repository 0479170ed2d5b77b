"""Trained U-Nets of Stable Diffusion go out as what diffusers loads and draws with."""

import json

import jax
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from etils import epath

from imagen_ft import weights
from imagen_ft.weights.__main__ import main, run
from imagen_ft.weights.latent_unet_config import build_latent_unet, latent_unet_config
from launch.runtime.checkpoints import checkpoint
from launch.runtime.run_record import write_record
from tests.parity.latent_models import LATENTS, UNETS, save_pipeline, tiny_clip, tiny_vae
from tests.parity.test_latent_pipeline import SIDE, STEPS

CLASS = dict(_class_name="UNet2DConditionModel")


@pytest.mark.parametrize(
    "kind", [*(pytest.param(k, marks=pytest.mark.slow) for k in ("sd15", "sd21")), "sdxl"]
)
def test_config_both_ways(kind):
    config = json.loads(json.dumps(UNETS[kind] | CLASS))
    model, shapes = build_latent_unet(config, kind)
    made = latent_unet_config(model, shapes, UNETS[kind]["sample_size"])
    theirs = UNet2DConditionModel.from_config(made).config
    for field, value in UNet2DConditionModel.from_config(config).config.items():
        if not field.startswith("_"):
            assert theirs[field] == value, field


def make_run(folder, model, params, prediction):
    """A run directory as imagen_ft.finetune leaves it."""
    names = ("block_out_channels", "attention", "num_heads", "layers_per_block", "depths")
    names += ("linear_projection", "num_groups")
    stage = dict(
        size=SIDE,
        low_size=0,
        channels=LATENTS,
        schedule="scaled_linear",
        prediction=prediction,
        unet={name: getattr(model, name) for name in names},
        autoencoder=dict(block_out_channels=(16, 32), layers_per_block=1, num_groups=4),
    )
    folder.mkdir()
    config = {"total_steps": 3, "stage": stage, "lora": None}
    run_name = write_record(epath.Path(folder), config, inputs={})
    checkpoint.save_inference(folder, run_name, {"params": params}, step=3)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A pipeline and a run that has begun with it."""
    folder = tmp_path_factory.mktemp("trained")
    pipeline = save_pipeline(folder / "pipeline", "sd21", "v_prediction")
    model, params = weights.load_part("unet", folder / "pipeline")
    params = jax.tree.map(lambda leaf: leaf * 1.01, params)
    return folder, pipeline, make_run(folder / "run", model, params, "v")


@pytest.mark.slow
def test_a_run_draws_the_same_picture_in_diffusers(trained, tmp_path):
    folder, pipeline, trained_run = trained
    lender = f"--pipeline={folder}/pipeline"
    main(["weights", f"--from={trained_run}", f"--to=diffusers:{tmp_path}/exported", lender])
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path / "exported")
    loaded.set_progress_bar_config(disable=True)
    noise = np.random.default_rng(0).normal(size=(1, LATENTS, SIDE, SIDE)).astype(np.float32)

    def draw(pipeline):
        given = dict(num_inference_steps=STEPS, height=2 * SIDE, width=2 * SIDE, output_type="np")
        latents = torch.from_numpy(noise.copy())
        return pipeline("a dog", guidance_scale=3.0, latents=latents, **given).images

    before = draw(pipeline)
    with torch.no_grad():
        for parameter in pipeline.unet.parameters():
            parameter.mul_(1.01)
    np.testing.assert_allclose(draw(loaded), draw(pipeline), atol=1e-5)
    assert np.abs(draw(loaded) - before).max() > 1e-3


@pytest.mark.slow
def test_a_pipeline_of_other_parts_is_refused(trained, tmp_path, capsys):
    """One line and exit code 2; nothing is written."""
    folder, _, trained_run = trained
    other = tmp_path / "other"
    (other / "scheduler").mkdir(parents=True)
    for name in ("model_index.json", "scheduler/scheduler_config.json"):
        (other / name).write_bytes((folder / "pipeline" / name).read_bytes())
    command = ["weights", f"--from={trained_run}", f"--to=diffusers:{tmp_path}/exported"]

    def assert_fails(said):
        capsys.readouterr()
        assert run([*command, f"--pipeline={other}"]) == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert len(error) == 1 and said in error[0]
        assert not (tmp_path / "exported").exists()

    tiny_vae(latent_channels=8).save_pretrained(other / "vae")
    assert_fails("the U-Net takes latents of 4 channels, the auto-encoder makes 8; use the vae")
    tiny_vae().save_pretrained(other / "vae")
    tiny_clip("clip", hidden_size=24).save_pretrained(other / "text_encoder")
    assert_fails("takes text states 16 wide, the text encoders make 24; use those that came")
    index = json.loads((other / "model_index.json").read_text())
    (other / "model_index.json").write_text(json.dumps(index | {"_class_name": "IFPipeline"}))
    tiny_clip("clip").save_pretrained(other / "text_encoder")
    assert_fails("got IFPipeline")
