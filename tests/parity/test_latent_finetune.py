"""imagen_ft.finetune on latents, from a tiny pipeline that diffusers has saved, from end to end."""

import json
import shutil

import jax
import numpy as np
import pytest
from diffusers import UNet2DConditionModel
from etils import epath
from ml_collections import ConfigDict

from configs.digits import common, evaluate_images
from configs.digits import sweep as sweep_digits
from imagen_ft import evaluate, finetune, generate, sample, sweep, weights
from imagen_ft.cascade import Cascade
from imagen_ft.text.encoders import make_text_encoder
from imagen_ft.training import train_stage
from imagen_ft.training.sampled_metric import metric_name
from imagen_ft.training.training import Training
from imagen_ft.weights.__main__ import main
from input_pipeline.synthetic.source import SyntheticSource
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


@pytest.fixture(scope="module")
def extractor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("extractor") / "run"
    return str(tiny.write_run(folder, tiny.variables, model=tiny.FIELDS))


@pytest.fixture(scope="module")
def run(pipeline, extractor, tmp_path_factory):
    config = get_config(str(pipeline))
    config.evaluation_metric = dict(
        measure="sliced",
        every=STEPS,
        num_images=10,
        batch_size=5,
        extractor=dict(name="classifier", path=extractor),
        sampling=dict(config.pictures.to_dict(), stored_size=8),
        sliced=dict(num_directions=20, seed=2020),
    )
    return train(config, tmp_path_factory.mktemp("runs") / "run")


@pytest.mark.slow
def test_a_run_on_latents(pipeline, run, tmp_path):
    """It is evaluated, drawn, measured and resumed, sampled and exported."""
    assert run.inputs["autoencoder"] == weights.digest(pipeline, "vae")
    records = [json.loads(x) for x in (run.path / "metrics.jsonl").read_text().splitlines()]
    named = {name for record in records for name in record}
    metric = metric_name(run.config.evaluation_metric)
    assert {"validation_loss", "validation_loss_slow", metric} <= named
    # The last steps again, from the checkpoint before them.
    digest, before = run.digest(), losses(run)
    copy = shutil.copytree(run.path, tmp_path / "copy")
    (last,) = [path for path in (copy / "checkpoints").iterdir() if path.name.endswith(str(STEPS))]
    shutil.rmtree(last)
    again = train(ConfigDict(run.config.to_dict()), copy)
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


def write_config(path, config):
    path.write_text(
        f"from ml_collections import ConfigDict\n\ndef get_config():\n    return "
        f"ConfigDict({config.to_dict()!r})\n"
    )
    return path


@pytest.mark.slow
def test_commands_draw_with_a_run(run, extractor, tmp_path, capsys):
    """Samples, a synthetic set, a measure of what is drawn on the way, and a sweep."""
    cascade = common.cascade()
    cascade.text, cascade.batch_size = run.config.text, 5
    cascade.stages = dict(
        sd=dict(
            run=str(run.path),
            stage=run.config.stage,
            sampler=dict(name="ddim", num_steps=2, eta=0.0),
            guidance_weight=2.0,
        )
    )
    made = cascade.copy_and_resolve_references()
    made.update(name="latents", copies=1, images_per_shard=0, images_per_prompt=1)
    made.update(show_stages=False, encoding=dict(size=0, format="png"))
    made.real_source = dict(name="digits", split="train")
    file = write_config(tmp_path / "made.py", made)
    prompt = "--prompt=three"
    assert commands.run(sample.main, file, tmp_path / "samples", prompt) == 0
    assert (tmp_path / "samples/samples.png").exists()
    assert commands.run(generate.main, file, tmp_path / "set") == 0
    drawn = SyntheticSource(tmp_path / "set")
    assert len(drawn) == 30 and drawn[0]["image"].shape == (8, 8, 1)

    measured = evaluate_images.get_config(
        f"runlocal,synthetic={tmp_path}/set,extractor={extractor}"
    )
    measured.sets.sampled = dict(cascade=cascade, num_images=20, labels="balanced", write="")
    measured.measures, measured.sliced.num_directions = ("sliced",), 20
    file = write_config(tmp_path / "measured.py", measured)
    assert commands.run(evaluate.main, file, tmp_path / "measured") == 0
    sets = json.loads((tmp_path / "measured/evaluation.json").read_text())["sets"]
    assert {"set", "sampled"} <= sets.keys()

    swept = sweep_digits.get_config(f"stage=base4,runlocal,extractor={extractor}")
    swept.cascade, swept.stage = made, "sd"
    swept.grid, swept.num_images = dict(guidance_weight=(1.0, 2.0)), 20
    swept.reference.source.square = swept.reference.held_out.square = 8
    swept.measures, swept.choose_by, swept.cas = ("sliced",), "sliced", {}
    swept.halving.measure = "sliced"
    file = write_config(tmp_path / "swept.py", swept)
    assert commands.run(sweep.main, file, tmp_path / "swept") == 0
    assert len((tmp_path / "swept/sweep.csv").read_text().splitlines()) == 3
    # The best one is a config to draw with.
    best = tmp_path / "swept/best.py"
    assert commands.run(sample.main, best, tmp_path / "best", prompt) == 0


@pytest.mark.slow
def test_kept_latents(pipeline, tmp_path):
    """Encoded once, and again where a run has none; the losses are those of images."""
    config = get_config(str(pipeline))
    config.flip, config.pictures_every, config.evaluate_every = True, 0, 0
    expected = losses(train(config, tmp_path / "run"))
    config.latents = dict(cache=str(tmp_path / "kept"))
    kept = train(config, tmp_path / "kept_run")
    np.testing.assert_allclose(losses(kept), expected, rtol=1e-3)
    assert losses(kept) != expected
    files = [path.stat().st_mtime_ns for path in (tmp_path / "kept").glob("part-*")]
    train(config, tmp_path / "again")
    assert files == [path.stat().st_mtime_ns for path in (tmp_path / "kept").glob("part-*")]


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
        "layers_per_block must be 1, as the weights of",
        "--config.stage.autoencoder.layers_per_block=2",
    )
