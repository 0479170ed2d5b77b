"""From a pipeline in diffusers' layout to pictures, by the commands that a user runs."""

import dataclasses
import re
import runpy
import shutil
from unittest import mock

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from diffusers import UNet2DConditionModel
from etils import epath

from configs.digits import finetune_base4
from imagen_ft import sample
from imagen_ft.cascade import Cascade, film
from imagen_ft.diffusion.from_config import make_denoiser
from imagen_ft.diffusion.stage import Stage
from imagen_ft.text import __main__
from imagen_ft.training import warm_start
from imagen_ft.training.training import Training
from imagen_ft.weights import __main__ as weights_command
from imagen_ft.weights import load_unet
from launch.errors import InputError
from launch.runtime import app
from launch.runtime.devices.mesh import make_mesh
from launch.runtime.reports import image_grid
from tests.imagen_ft.text import tiny_text
from tests.parity.torch_weights import randomize
from tests.parity.weights_models import STAGES

CONFIG = """
from configs.deepfloyd import sample


def get_config(arg=""):
    config = sample.get_config(arg)
    unet = dict(
        block_out_channels=(32, 64),
        layers_per_block=1,
        attention=(False, True),
        cross_attention_dim=64,
        attention_head_dim=16,
        pooling_heads=4,
    )
    second = dict(time_embedding_dim=64, skip_time_act=True, out_scale=1.41422712)
    base, larger = config.stages.base64, config.stages.sr256
    base.run, larger.run = {first!r}, "deepfloyd:" + {second!r}
    base.stage.size, base.stage.unet = 4, unet
    larger.stage.low_size, larger.stage.size = 4, 8
    larger.stage.unet = dict(unet, **second, layers_per_block=(1, 2))
    larger.batch_size = 2
    for stage in (base, larger):
        stage.sampler.num_steps = 3
    config.text = dict(cache={cache!r}, null="empty", shape=(77, 16))
    config.images_per_prompt = 2
    return config
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory, request):
    """An import of the base, files of the super-resolution, a cache of two prompts, a config."""
    folder = tmp_path_factory.mktemp("work")
    for number, name in ((1, "first"), (2, "second")):
        unet = UNet2DConditionModel(**{**STAGES[number], "encoder_hid_dim": tiny_text.D_MODEL})
        randomize(unet, number).save_pretrained(folder / name / "unet")
    tiny_text.save(folder / "first")
    imported = folder / "imported"
    weights_command.main(["", f"--from=deepfloyd:{folder / 'first'}", f"--to={imported}"])
    shutil.rmtree(folder / "first")
    (folder / "prompts.txt").write_text("A goldfish\n\ntwo cats\n")
    argv = [f"--prompts={folder / 'prompts.txt'}", f"--weights={imported}"]
    assert __main__.run(["text", *argv, f"--to={folder / 'cache'}"]) == 0
    shutil.copytree(imported, folder / "with_t5")
    shutil.rmtree(imported / "text_encoder")
    paths = dict(first=imported, second=folder / "second", cache=folder / "cache")
    text = CONFIG.format(**{name: str(path) for name, path in paths.items()})
    (folder / "config.py").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(request.config.rootpath)
        yield folder


def run(work, workdir, *argv):
    """The exit code."""
    arguments = [f"--config={work / 'config.py'}", f"--workdir={workdir}", *argv]
    with pytest.raises(SystemExit) as ended:
        app.run(sample.main, sample.__doc__, sample.define_flags, argv=["sample", *arguments])
    return ended.value.code


def error(capsys):
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("error: ")
    return err


@pytest.mark.slow  # Compiles two networks; what the command does with images is tested below.
def test_pictures(work, tmp_path, monkeypatch):
    original, batches = Cascade.sample, []

    def recording(self, *args, **options):
        batches.append(self.batch_size)
        return original(self, *args, **options)

    monkeypatch.setattr(Cascade, "sample", recording)
    out, ours = tmp_path / "out", ["--config.seed=3", "--config.batch_size=7"]
    assert run(work, out, f"--prompts={work / 'prompts.txt'}", "--path=3", *ours) == 0
    assert batches == [7]
    names = sorted(path.name for path in out.glob("0*.png"))
    assert [name[:13] for name in names] == [
        "00000_A_goldf",
        "00001_A_goldf",
        "00002_two_cat",
        "00003_two_cat",
    ]
    written = np.stack([cv2.imread(str(out / name))[..., ::-1] for name in names])
    assert written.shape == (4, 8, 8, 3) and written.std() > 10
    assert cv2.imread(str(out / "samples.png")) is not None
    assert cv2.imread(str(out / "path.png")) is not None

    cascade = Cascade.load(str(work / "config.py"))
    prompts = ["A goldfish", "A goldfish", "two cats", "two cats"]
    small, large = cascade.sample(prompts, seed=3, every_stage=True)
    np.testing.assert_array_equal(large, written)
    np.testing.assert_allclose(cascade.path(prompts, seed=3)[-1].astype(int), small, atol=1)
    again = cascade.sample(prompts, seed=3, low=small)
    # What is given has been rounded to uint8.
    assert np.abs(again.astype(int) - large).mean() < 3
    with pytest.raises(
        InputError, match=r"low must be images of 4 px, got the shape \[4, 5, 5, 3\]"
    ):
        cascade.sample(prompts, low=np.zeros((4, 5, 5, 3), np.uint8))


@pytest.mark.slow
def test_weights_without_a_config(work):
    """A stage with its own T5, which has any prompt at hand; or T5 in the place of a cache."""
    cascade = Cascade.load(str(work / "with_t5"), num_steps=2)
    [stage] = cascade.stages
    assert stage.denoiser.size == 64 and stage.sampler.num_steps == 2
    assert stage.denoiser.model.block_out_channels == (32, 64) and cascade.class_names == ()
    cached = Cascade.load(str(work / "config.py"))
    with pytest.raises(InputError, match="prompt 'a prompt that no cache has' is not in"):
        cached.encoder.embed(["a prompt that no cache has"])
    live = Cascade.load(str(work / "config.py"), text=str(work / "with_t5"))
    assert live.encoder.digest == cached.encoder.digest
    states = cascade.encoder.embed(["a prompt that no cache has"])
    assert states.shape == (1, 77, tiny_text.D_MODEL)
    with pytest.raises(InputError, match="two stages have the same size"):
        Cascade.load([str(work / "with_t5")] * 2)


def test_a_film_goes_from_the_first_step_to_the_last(monkeypatch):
    steps = np.tile(np.arange(9, dtype=np.uint8).reshape(-1, 1, 1, 1, 1), (1, 2, 4, 4, 3))
    cascade, drawn = mock.Mock(Cascade, path=lambda prompts, seed: steps + seed), []
    monkeypatch.setattr(image_grid, "grid", lambda *args: drawn.append(args))
    monkeypatch.setattr(image_grid, "to_png", lambda _: b"")
    film(cascade.path(["a", "b"], 10), ["a", "b"], 3)
    [(tiles, captions, columns)] = drawn
    assert [int(tile[0, 0, 0]) for tile in tiles] == [10, 14, 18] * 2
    assert captions == ["a", "step 5", "step 9", "b", "step 5", "step 9"] and columns == 3
    with pytest.raises(
        InputError, match="captions must have one string for each of 2 images, got 1"
    ):
        film(cascade.path(["a", "b"], 10), ["a"], 3)


def test_any_prompt_has_a_name_and_a_caption(tmp_path):
    """Dollar signs are not mathematics; no file system takes names of more than 255 bytes."""
    prompts = [r"cost $\x$", "$_$", "\N{CJK UNIFIED IDEOGRAPH-9B5A}" * 90, "a" * 300]
    images = np.zeros((4, 8, 8, 3), np.uint8)
    for number, prompt in enumerate(prompts):
        assert len(sample.image_name(number, prompt, 1024).encode()) <= 150
    sample.write_images([images[:2]], prompts[:2], 1, epath.Path(tmp_path))
    assert cv2.imread(str(tmp_path / "samples.png")) is not None


@pytest.mark.parametrize("name", ["holiday.png", "holiday.JPG"])
def test_a_folder_with_other_images(work, tmp_path, capsys, name):
    (tmp_path / name).touch()
    assert run(work, tmp_path, "--prompt=two cats") == 2
    assert f"has other images ({name}); choose another" in error(capsys)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def of_keys(stage, variables, keys, **_):
    """Images in the place of those that a network draws."""
    shape = stage.denoiser.size, stage.denoiser.size, 3
    return jax.vmap(lambda key: jax.random.uniform(key, shape, minval=-1.0))(keys)


@pytest.mark.slow
def test_images_are_not_replaced_by_others(work, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Stage, "sample", of_keys)
    assert run(work, tmp_path, "--prompt=two cats") == 0
    images = {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}
    capsys.readouterr()
    assert run(work, tmp_path, "--prompt=two cats", "--config.seed=5") == 2
    assert "drawn with seed = 0, now it is 5" in error(capsys)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.png")} == images
    assert run(work, tmp_path, "--prompt=two cats", "--config.batch_size=1") == 0
    capsys.readouterr()
    assert run(work, tmp_path, "--prompt=two cats", "--negative_prompt=a goldfish") == 2
    assert "drawn with negative_prompt = , now it is a goldfish" in error(capsys)


@pytest.mark.slow
def test_a_dry_run_tells_the_memory_of_every_phase(work, capsys):
    with pytest.raises(SystemExit) as ended:
        argv = ["sample", f"--config={work / 'config.py'}", "--dry_run"]
        app.run(sample.main, sample.__doc__, sample.define_flags, argv=argv)
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()[-7:]
    assert lines[0].startswith("peak memory, in GB")
    phases = ["base64: load", "sr256: load", "base64: draw", "sr256: draw", "peak"]
    assert [line.rsplit(maxsplit=2)[0] for line in lines[2:]] == phases


DDIM = ["--config.stages.base64.sampler.name=ddim"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "nothing to draw; give --prompt=... or --prompts=FILE"),
        (["--prompt=three dogs"], r"'three dogs' is not in .*python -m imagen_ft\.text"),
        (["--prompt=two cats", "--negative_prompt=blur"], r"'blur' is not in .*imagen_ft\.text"),
        (["--prompts=EMPTY"], "is empty"),
        (["--prompts=BLANK"], "blank.txt has no prompt"),
        (["--prompt=two cats", "--prompts=BLANK"], "blank.txt has no prompt"),
        (
            ["--prompt=two cats", "--config.stages.base64.sampler.eta=2.0", *DDIM],
            "eta must be .* got 2.0",
        ),
        (
            ["--prompt=two cats", "--config.stages.sr256.batch_size=-1"],
            "batch_size must be .* got -1",
        ),
        (["--prompt=two cats", "--config.stages.base64.guidance_weight=-1.0"], "guidance_weight"),
        (
            ["--prompt=two cats", "--config.stages.base64.sampler.num_steps=1001"],
            "at most the schedule's 1000 steps",
        ),
        (
            ["--prompt=two cats", "--config.stages.base64.sampler.spacing=lu"],
            "must be one of .* got 'lu'",
        ),
        (
            ["--prompt=two cats", "--config.stages.sr256.noise_augmentation=1.5"],
            "must be in .* got 1.5",
        ),
        (
            ["--prompt=two cats", "--config.stages.sr256.stage.low_size=2"],
            "must start from the 4 px .* got 2",
        ),
        (
            ["--prompt=two cats", "--config.stages.base64.stage.unet.pooling_heads=2"],
            "pooling_heads must be 4, .* got 2",
        ),
        (["--prompt=two cats", "--path=-1"], "--path must be .* got -1"),
    ],
)
def test_one_line_for_wrong_input(work, tmp_path, capsys, argv, message):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "blank.txt").write_text("\n \n")
    for name in ("empty", "blank"):
        argv = [arg.replace(name.upper(), str(tmp_path / f"{name}.txt")) for arg in argv]
    assert run(work, tmp_path / "out", *argv) == 2
    assert re.search(message, error(capsys))
    assert not (tmp_path / "out").exists()


def test_training_begins_with_the_weights(work):
    stage = runpy.run_path(str(work / "config.py"))["get_config"]().stages.base64.stage
    config = finetune_base4.get_config()
    config.stage, config.init_from = stage, str(work / "imported")
    config.loss.vlb_weight = 0.001
    # Of the text only its shape counts here.
    training = dataclasses.replace(Training.of(config), text_shape=(77, 16), tx=optax.sgd(1.0))
    assert len(warm_start.check_start(training)["init_from"]) == 64
    state = warm_start.create(training, make_mesh({"data": -1}))
    _, params = load_unet(work / "imported")
    for ours in (state.variables, state.ema["main"]):
        jax.tree.map(np.testing.assert_array_equal, ours["params"], params)

    config.stage.prediction = "v"
    other = dataclasses.replace(training, denoiser=make_denoiser(config.stage))
    for start in (warm_start.check_start, lambda t: warm_start.create(t, make_mesh({"data": -1}))):
        with pytest.raises(
            InputError, match=r"prediction must be 'eps', as for the weights of .*, got 'v'"
        ):
            start(other)


def test_what_is_no_number_is_not_written(work, tmp_path, capsys, monkeypatch):
    draw = lambda _, variables, keys, **__: jnp.full((len(keys), 8, 8, 3), jnp.inf)  # noqa: E731
    monkeypatch.setattr(Stage, "sample", draw)
    assert run(work, tmp_path, "--prompt=two cats") == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(
        "error: stage base64 produced NaN or infinity for image 0 of the prompt 'two"
    )
    assert not list(tmp_path.iterdir())
