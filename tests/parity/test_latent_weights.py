"""Whole pipelines of Stable Diffusion in and out, as diffusers saves them."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler

from imagen_ft import weights
from imagen_ft.weights.__main__ import main, run
from imagen_ft.weights.latent_parts import latent_settings
from launch.errors import InputError
from tests.parity.latent_models import tiny_clip, tiny_unet, tiny_vae
from tests.parity.test_weights import assert_same_files

NOISE = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


def save(folder, kind, **options):
    """What a pipeline's `save_pretrained` writes, but for the tokenizer's files."""
    models = dict(unet=tiny_unet(kind), vae=tiny_vae(), text_encoder=tiny_clip("clip"))
    scheduler = PNDMScheduler(**NOISE, skip_prk_steps=True, steps_offset=1)
    if kind == "sdxl":
        models["text_encoder_2"] = tiny_clip("openclip")
        scheduler = EulerDiscreteScheduler(**NOISE)
    for name, model in models.items():
        model.to(options.get("dtype", torch.float32)).save_pretrained(
            folder / name, **{k: v for k, v in options.items() if k != "dtype"}
        )
    scheduler.save_pretrained(folder / "scheduler")
    kind = "StableDiffusionXLPipeline" if kind == "sdxl" else "StableDiffusionPipeline"
    index = dict(_class_name=kind, **{name: ["library", "class"] for name in models})
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def add_positions(folder, prefix="text_model."):
    """As transformers wrote CLIP before 4.31."""
    path = folder / "text_encoder/model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    tensors = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    tensors[f"{prefix}embeddings.position_ids"] = np.arange(9)[None]
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("sd15", dict(variant="fp16", dtype=torch.float16)),
        pytest.param("sdxl", dict(max_shard_size="60KB"), marks=pytest.mark.slow),
    ],
    ids=["a variant in half precision", "several files"],
)
def test_import_and_export_keep_every_byte(kind, options, tmp_path):
    saved = save(tmp_path / "saved", kind, **options)
    if kind == "sd15":
        variant = saved / "text_encoder/model.fp16.safetensors"
        shutil.move(variant, saved / "text_encoder/model.safetensors")
        add_positions(saved)
        shutil.move(saved / "text_encoder/model.safetensors", variant)
    command = ["weights", f"--from=diffusers:{saved}", f"--to={tmp_path}/imported"]
    main([*command, *([f"--variant={options['variant']}"] if "variant" in options else [])])
    main(["weights", f"--from={tmp_path}/imported", f"--to=diffusers:{tmp_path}/exported"])
    assert_same_files(tmp_path / "exported", saved)
    for name in PARTS[: 4 if kind == "sdxl" else 3]:
        expected = weights.load_part(name, saved, variant=options.get("variant"))
        found = weights.load_part(name, tmp_path / "imported")
        assert found[0] == expected[0]
        assert weights.digest(tmp_path / "imported", name) == weights.digest(
            saved, name, options.get("variant")
        )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save(tmp_path_factory.mktemp("saved") / "sd15", "sd15")


def test_parts_that_do_not_fit_together(saved, tmp_path, capsys):
    """One line and exit code 2; nothing is written."""
    pipeline = shutil.copytree(saved, tmp_path / "pipeline")
    command = ["weights", f"--from=diffusers:{pipeline}", f"--to={tmp_path}/imported"]

    def assert_fails(said):
        capsys.readouterr()
        assert run(command) == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert len(error) == 1 and said in error[0]
        assert not (tmp_path / "imported").exists()

    shutil.rmtree(pipeline / "vae")
    tiny_vae(latent_channels=8).save_pretrained(pipeline / "vae")
    assert_fails("the U-Net takes latents of 4 channels, the auto-encoder makes 8; use the vae")
    shutil.rmtree(pipeline / "vae")
    shutil.copytree(saved / "vae", pipeline / "vae")
    shutil.rmtree(pipeline / "text_encoder")
    tiny_clip("clip", hidden_size=24).save_pretrained(pipeline / "text_encoder")
    assert_fails("takes text states 16 wide, the text encoders make 24; use those that came")
    command[1] += "/vae/diffusion_pytorch_model.safetensors"
    assert_fails(
        "is not a checkpoint of Stable Diffusion 1.x, 2.x or XL base in the original layout"
    )
    command[1] = f"--from=diffusers:{pipeline}"
    for file in pipeline.glob("*/*.safetensors"):
        file.rename(file.with_suffix(".bin"))
    assert_fails("diffusion_pytorch_model.bin is a pickle, which could run any code")


@pytest.mark.parametrize("zero_snr", [False, True])
def test_settings_of_schedulers(zero_snr):
    config = DDIMScheduler(
        **NOISE, prediction_type="v_prediction", rescale_betas_zero_snr=zero_snr
    ).config
    schedule = dict(
        name="scaled_linear",
        num_train_timesteps=1000,
        beta_first=0.00085,
        beta_last=0.012,
        zero_terminal_snr=zero_snr,
    )
    assert latent_settings(config, "") == dict(schedule=schedule, prediction="v")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("beta_end", "much"),
        ("beta_schedule", "squaredcos_cap_v2"),
        ("prediction_type", "flow"),
        ("prediction_type", ["epsilon"]),
        ("rescale_betas_zero_snr", 1),
        ("trained_betas", [0.1]),
    ],
)
def test_schedulers_that_are_not_implemented(field, value):
    with pytest.raises(InputError, match=rf"^x\.json: {field} (is|must be)") as error:
        latent_settings({**NOISE, field: value}, "x.json")
    assert "\n" not in str(error.value)
