"""From a pipeline in diffusers' layout to pictures, by the commands that a user runs."""

import re
import shutil

import cv2
import numpy as np
import pytest
from diffusers import UNet2DConditionModel

from imagen_ft import sample, text_command
from imagen_ft.cascade import Cascade
from imagen_ft.weights import __main__ as weights_command
from input_pipeline.files import InputError
from launch.runtime import app
from tests.imagen_ft import tiny_text
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
    base.run, larger.run = {first!r}, {second!r}
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
    assert text_command.main([*argv, f"--to={folder / 'cache'}"]) == 0
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


def test_pictures(work, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(work, out, f"--prompts={work / 'prompts.txt'}", "--path=3") == 0
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
    small, large = cascade.sample_stages(prompts, batch_size=16)
    np.testing.assert_array_equal(large, written)
    np.testing.assert_allclose(cascade.path(prompts)[-1].astype(int), small, atol=1)
    again = cascade.upsample(small, prompts)
    # What is given has been rounded to uint8.
    assert np.abs(again.astype(int) - large).mean() < 3
    with pytest.raises(
        InputError, match=r"images of shape \[4, 5, 5, 3\]: the stages start from 4 px"
    ):
        cascade.upsample(np.zeros((4, 5, 5, 3), np.uint8), prompts)


def test_a_folder_with_other_images(work, tmp_path, capsys):
    (tmp_path / "holiday.png").touch()
    assert run(work, tmp_path, "--prompt=two cats") == 2
    assert re.search(r"holds other images \(holiday\.png\): name another", error(capsys))
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.png"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "nothing to draw: give --prompt=... or --prompts=FILE"),
        (["--prompt=three dogs"], r"'three dogs' is not in .*python -m imagen_ft\.text"),
        (["--prompts=EMPTY"], "the file is empty"),
        (["--prompt=two cats", "--config.stages.base64.guidance_weight=-1.0"], "guidance_weight"),
        (["--prompt=two cats", "--config.stages.base64.sampler.num_steps=1001"], "has 1000 steps"),
        (["--prompt=two cats", "--config.stages.base64.sampler.spacing=karras"], "known are"),
        (["--prompt=two cats", "--config.stages.sr256.noise_augmentation=1.5"], "is in"),
        (["--prompt=two cats", "--config.stages.sr256.stage.low_size=2"], "starts from 2 px"),
        (["--prompt=two cats", "--config.stages.base64.stage.unet.pooling_heads=2"], "have 4"),
        (["--prompt=two cats", "--path=-1"], "--path=-1"),
    ],
)
def test_one_line_for_wrong_input(work, tmp_path, capsys, argv, message):
    (tmp_path / "empty.txt").touch()
    argv = [arg.replace("EMPTY", str(tmp_path / "empty.txt")) for arg in argv]
    assert run(work, tmp_path / "out", *argv) == 2
    assert re.search(message, error(capsys))
    assert not (tmp_path / "out").exists()
