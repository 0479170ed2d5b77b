"""Stable Diffusion as a stage: opened, drawn, told and refused; `parity/` compares pictures."""

import json
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from imagen_ft import sample
from imagen_ft.cascade import Cascade, memory_phases
from imagen_ft.cascade.latent_weights import sampler_of
from imagen_ft.cascade.opened import as_config
from imagen_ft.diffusion.from_config import make_stages
from imagen_ft.diffusion.sampler_from_config import make_sampler
from imagen_ft.diffusion.stage import AUTOENCODER
from launch.errors import InputError
from launch.runtime.config import load_config
from tests.parity.latent_models import (
    LATENTS,
    LENGTH,
    POOLED,
    TEXT,
    VAE,
    save_pipeline,
    tiny_clip,
)
from tests.support import ROOT, commands
from tests.support.clip_vocabulary import VOCABULARY

CONFIG = "configs/stable_diffusion/sample.py:runlocal"
# What the networks of `latent_models` have otherwise than the config's.
STAGE, SAMPLER = "--config.stages.sd.stage", "--config.stages.sd.sampler"
NETWORK = [
    f"{STAGE}.unet.block_out_channels=(16, 32)",
    f"{STAGE}.unet.layers_per_block=2",
    f"{STAGE}.autoencoder.block_out_channels=(16, 32)",
]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    save_pipeline(folder, "sd15", "epsilon")
    return folder


@pytest.fixture
def run(pipeline, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)

    def run(*argv, folder=pipeline, width=TEXT):
        of_weights = [f"--config.text.weights={folder}", f"--config.stages.sd.run={folder}"]
        of_weights.append(f"--config.text.shape=({LENGTH}, {width})")
        argv = [*of_weights, *NETWORK, "--prompt=a dog", "--prompt=a cat", *argv]
        return commands.run(sample.main, CONFIG, tmp_path / "out", *argv)

    return run


@pytest.mark.slow
def test_a_folder_is_drawn(pipeline):
    """What its files say; the path ends in the images, and real ones decide what is left."""
    cascade = Cascade.load(pipeline, dtype="float32", num_steps=2, stored_size=12)
    (stage,) = cascade.stages
    assert stage.sampler.spacing == "leading_one" and stage.sampler.keeps_noise
    assert (stage.guidance_weight, stage.denoiser.size, stage.denoiser.image_size) == (7.5, 8, 16)
    assert "16 px stored at 12" in repr(cascade)
    assert cascade.variables[0].keys() == {"params", AUTOENCODER}
    images = cascade.sample(["a dog", "a cat"], seed=1)
    assert images.shape == (2, 12, 12, 3) and images.std() > 10
    path = cascade.path(["a dog", "a cat"], seed=1)
    assert path.shape == (2, *images.shape)
    # The last step keeps the noise of the schedule's first one.
    assert 0 < np.abs(path[-1].astype(int) - images).max() < 40


@pytest.mark.slow
def test_the_command(run, tmp_path, capsys):
    assert run("--config.images_per_prompt=1") == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"samples.png", "00000_a_dog_16px.png", "00001_a_cat_16px.png"} <= names
    settings = json.loads((tmp_path / "out/samples.json").read_text())
    assert len(settings["weights"]) == 1
    capsys.readouterr()
    assert run("--config.images_per_prompt=1", "--config.stages.sd.stored_size=8") == 2
    assert "has other images" in capsys.readouterr().err


@pytest.mark.slow
def test_a_dry_run_counts_all_parts(run, pipeline, capsys):
    assert run("--dry_run") == 0
    out = capsys.readouterr().out
    assert "sd.autoencoder: " in out
    for name in ("CLIP: load", "sd: draw", "sd: decode"):
        assert name in out
    phases = {phase.name: phase for phase in memory_phases(as_config(pipeline))}
    cascade = Cascade.load(pipeline)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(cascade.variables))
    assert phases["sd: load"].device == held < phases["sd: decode"].device


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--config.stages.sd.threshold_percentile=95.0"], "threshold_percentile must be left out"),
        (["--config.stages.sd.threshold_maximum=1.5"], "threshold_maximum must be left out"),
        ([f"{STAGE}.channels=8"], "stage.channels must be 4, as in the auto-encoder's latents"),
        ([f"{STAGE}.low_size=4"], "stage.low_size must be 0 for latents"),
        ([f"{STAGE}.pooled_width=8"], "stage.pooled_width must be 0 for a network without"),
        ([f"{STAGE}.sizes=(8, 8)"], "stage.sizes must be 6 numbers"),
        ([f"{STAGE}.autoencoder.preset=sd15"], "must be that of an auto-encoder, got 'sd15'"),
        ([f"{STAGE}.autoencoder.scaling_factor=0.5"], "scaling_factor must be 0.18215"),
        (["--config.stages.sd.stored_size=32"], "stored_size must be from 1 to the 16 px"),
        ([f"{STAGE}.prediction=v"], "prediction must be 'eps', as for the weights of"),
        ([f"{STAGE}.schedule=cosine"], ", as for the weights of"),
        ([f"{SAMPLER}.spacing=5"], "sampler.spacing"),
        ([f"{SAMPLER}.num_steps=1000"], "must be below 1000 for sampler.spacing"),
        ([f"{SAMPLER}.name=ddpm", f"{SAMPLER}.logvar_coeff=learned"], "needs a learned variance"),
    ],
)  # fmt: skip
def test_bad_input(run, tmp_path, capsys, argv, said):
    assert run(*argv) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_weights_that_do_not_fit(run, pipeline, tmp_path, capsys):
    def copied(name, part):
        shutil.copytree(pipeline, tmp_path / name)
        return tmp_path / name, tmp_path / name / part

    def refused(folder, said, width=TEXT):
        capsys.readouterr()
        assert run(folder=folder, width=width) == 2
        err = capsys.readouterr().err
        assert said in err.splitlines()[-1], err
        assert not (tmp_path / "out").exists()

    folder, vae = copied("other", "vae")
    config = json.loads((vae / "config.json").read_text())
    (vae / "config.json").write_text(json.dumps(dict(config, latent_channels=8)))
    refused(folder, "vae")
    folder, vae = copied("without", "vae")
    shutil.rmtree(vae)
    refused(folder, "has no vae")
    folder, encoder = copied("wide", "text_encoder")
    wide = tiny_clip("clip", vocab_size=len(VOCABULARY), hidden_size=32)
    wide.save_pretrained(encoder)
    said = "text states and images must have the widths"
    refused(folder, said, 32)
    refused(folder, f"config.text.shape must be ({LENGTH}, 32)")
    folder, unet = copied("pickles", "unet")
    weights = unet / "diffusion_pytorch_model.safetensors"
    weights.rename(unet / "diffusion_pytorch_model.bin")
    refused(folder, "safetensors")


def test_networks_without_an_autoencoder(pipeline):
    config = as_config(pipeline)
    del config.stages.sd.stage.autoencoder
    config.stages.sd.stage.unet = dict(preset="tiny_sd15")
    with pytest.raises(InputError, match=r"stage\.autoencoder must be the auto-encoder"):
        Cascade.load(config)
    sampler = dict(name="ddim", num_steps=2, eta=0.0, keeps_noise="yes")
    with pytest.raises(InputError, match="keeps_noise must be True or False, got 'yes'"):
        make_sampler(ConfigDict(sampler))
    with pytest.raises(InputError, match="Stable Diffusion is a cascade by itself"):
        as_config([pipeline, pipeline])


def test_a_stage_behind_latents_starts_from_their_images():
    config = load_config(CONFIG)
    config.stages.sd.stored_size = 8
    network = dict(size=16, low_size=8, channels=3, schedule="cosine")
    config.stages.sr16 = dict(
        stage=dict(network, unet=dict(preset="tiny_imagen_sr")),
        sampler=dict(name="ddim", num_steps=2, eta=0.0),
        guidance_weight=1.0,
        threshold_percentile=100.0,
    )
    stages = make_stages(config)
    assert [(name, stage.image_size) for name, stage in stages.items()] == [("sd", 8), ("sr16", 16)]
    config.stages.sd.stored_size = 12
    with pytest.raises(InputError, match="must start from the 12 px of the stage before it, got 8"):
        make_stages(config)


@pytest.mark.parametrize("stored_size", [0, 8])
def test_what_is_stored_has_a_range(stored_size):
    """A stage behind starts from it; what is not finite stays so, and is told."""
    config = load_config(CONFIG)
    config.stages.sd.stored_size = stored_size
    stage = make_stages(config)["sd"]
    decoded = np.full((2, 16, 16, 3), -3.0, np.float32)
    decoded[:, 3:9] = 3.0
    decoded[1, 4, 4] = np.inf
    stored = stage._stored(decoded)
    assert np.abs(stored[0]).max() == 1 and not np.isfinite(stored[1]).all()


@pytest.mark.parametrize(
    ("said", "fields", "stands_in"),
    [
        (dict(_class_name="PNDMScheduler", set_alpha_to_one=None), dict(keeps_noise=True), True),
        (dict(_class_name="LCMScheduler"), dict(name="ddim", logvar_coeff=0.0), True),
        (dict(_class_name="DPMSolverMultistepScheduler"), dict(name="dpmpp", order=2), False),
        (
            dict(_class_name="DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++"),
            dict(name="dpmpp"),
            True,
        ),
        (
            dict(_class_name="EulerDiscreteScheduler", use_exponential_sigmas=True),
            dict(name="euler", spacing="exponential"),
            False,
        ),
        (dict(_class_name="EulerDiscreteScheduler", use_beta_sigmas=True), {}, True),
        (dict(timestep_spacing=5), "timestep_spacing must be 'linspace' or", False),
        (dict(steps_offset=7), "steps_offset must be 0 or 1, got 7", False),
        (dict(set_alpha_to_one="no"), "set_alpha_to_one must be True or False, got 'no'", False),
    ],
)
def test_the_sampler_of_a_scheduler(tmp_path, capsys, said, fields, stands_in):
    (tmp_path / "scheduler").mkdir()
    said = dict(_class_name="DDIMScheduler", steps_offset=1) | said
    said = {name: value for name, value in said.items() if value is not None}
    (tmp_path / "scheduler/scheduler_config.json").write_text(json.dumps(said))
    if isinstance(fields, str):
        with pytest.raises(InputError, match=fields):
            sampler_of(str(tmp_path))
        return
    assert fields.items() <= sampler_of(str(tmp_path)).items()
    assert ("replaces it" in capsys.readouterr().err) == stands_in


def test_sdxl_is_told_more(tmp_path):
    """The pooled text's width, both encoders, zeros for no text, and Euler's steps."""
    scheduler = dict(name="EulerDiscreteScheduler", timestep_spacing="leading")
    save_pipeline(tmp_path, "sdxl", "epsilon", scheduler)
    config = as_config(tmp_path)
    entry = config.stages.sd
    assert (entry.stage.pooled_width, config.text.null) == (POOLED, "zeros")
    assert entry.sampler.to_dict() == dict(name="euler", spacing="leading_one", num_steps=50)
    assert entry.guidance_weight == 5.0
    cascade = Cascade.load(config)
    assert cascade.encoder.shape == (LENGTH + 1, 2 * TEXT)
    denoiser = cascade.stages[0].denoiser
    assert (denoiser.size, denoiser.channels) == (8, LATENTS)
    assert denoiser.image_size == 8 * 2 ** (len(VAE["block_out_channels"]) - 1)
    shutil.rmtree(tmp_path / "tokenizer_2")
    with pytest.raises(InputError, match="must have a tokenizer_2"):
        Cascade.load(tmp_path)
