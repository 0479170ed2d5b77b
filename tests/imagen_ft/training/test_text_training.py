"""From a pipeline's text encoder to images: a cache takes the encoder's place in every task."""

import re
import shutil

import cv2
import numpy as np
import pytest

from imagen_ft import finetune, generate, sample
from imagen_ft.text import __main__
from imagen_ft.text.t5_embedder import T5Embedder
from input_pipeline.synthetic.verify import verify
from launch.files import read_json, read_sealed, write_sealed
from launch.runtime import app
from tests.imagen_ft.text import tiny_text

CONFIG = """
from ml_collections import ConfigDict

from configs.digits import common, finetune_base4, generate

TEXT = dict(cache={cache!r}, template="the digit {{}}")


def training():
    config = finetune_base4.get_config("runlocal")
    config.text, config.init_from = ConfigDict(TEXT), ""
    config.total_steps, config.batch_size, config.evaluation_draws = 2, 8, 1
    return config


def learned():
    config = training()
    config.stage = ConfigDict(dict(config.stage.to_dict(), learned_variance=True))
    return config


def sampling():
    config = generate.get_config("runlocal")
    del config.stages.sr8
    config.text, config.stages.base4.run = ConfigDict(TEXT), {run!r}
    config.stages.base4.sampler.num_steps = 2
    config.copies, config.batch_size = 1, 30
    config.images_per_prompt, config.show_stages = 1, False
    return config


get_config = lambda arg="": {{"train": training, "learned": learned, "sample": sampling}}[arg]()
"""


@pytest.fixture(scope="module")
def digits(tmp_path_factory, request):
    """A folder with a config, the cache of the ten names and a run of two steps."""
    folder = tmp_path_factory.mktemp("digits")
    tiny_text.save(folder / "pipeline")
    names = folder / "names.txt"
    names.write_text("zero\none\ntwo\nthree\nfour\nfive\nsix\nseven\neight\nnine\n")
    argv = [f"--prompts={names}", f"--weights={folder / 'pipeline'}", f"--to={folder / 'cache'}"]
    assert __main__.run(["text", *argv, "--template=the digit {}"]) == 0
    text = CONFIG.format(cache=str(folder / "cache"), run=str(folder / "run"))
    (folder / "config.py").write_text(text)
    # Neither its weights nor its tokenizer are needed any more.
    shutil.rmtree(folder / "pipeline")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(request.config.rootpath)
        patch.setattr(T5Embedder, "__post_init__", None)
        assert run(finetune, folder, "train", folder / "run") == 0
    return folder


def run(task, folder, argument, workdir, *argv):
    """The exit code."""
    arguments = [f"--config={folder / 'config.py'}:{argument}", f"--workdir={workdir}", *argv]
    with pytest.raises(SystemExit) as ended:
        define_flags = getattr(task, "define_flags", None)
        app.run(task.main, task.__doc__, define_flags, argv=["task", *arguments])
    return ended.value.code


@pytest.mark.slow
def test_training(digits):
    text = read_json(digits / "run" / "config.json")["text"]
    assert text == {"cache": str(digits / "cache"), "template": "the digit {}"}
    lines = (digits / "run" / "metrics.jsonl").read_text()
    assert '"step": 2' in lines and "validation_loss" in lines


@pytest.mark.slow
def test_dry_run(digits, tmp_path, capsys):
    assert run(finetune, digits, "train", tmp_path / "none", "--dry_run") == 0
    out = capsys.readouterr().out
    assert re.search(r"^unet: [\d,]{6,} parameters$", out, re.M)
    assert re.search(r"^text_encoder: 0 parameters$", out, re.M)
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_sampling(digits, tmp_path):
    """The prompt's states reach the network: by other states it draws another image."""
    argv = ("--prompt=seven", "--prompt=seven", "--config.seed=3")
    assert run(sample, digits, "sample", tmp_path / "one", *argv) == 0
    argv = ("--prompt=seven", "--prompt=two", "--config.seed=3")
    assert run(sample, digits, "sample", tmp_path / "other", *argv) == 0
    ours = [sorted((tmp_path / name).glob("0*.png")) for name in ("one", "other")]
    first, second = ([cv2.imread(str(path)) for path in paths] for paths in ours)
    np.testing.assert_array_equal(first[0], second[0])
    assert (first[1] != second[1]).any()


@pytest.mark.slow
def test_generating(digits, tmp_path):
    assert run(generate, digits, "sample", tmp_path / "set") == 0
    assert verify(tmp_path / "set").ok


@pytest.mark.slow
def test_a_learned_variance_needs_the_bound(digits, tmp_path, capsys):
    assert run(finetune, digits, "learned", tmp_path / "run") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: loss.vlb_weight must be above 0 ") and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_belongs_to_its_text_states(digits, tmp_path, capsys):
    """The cache at the same path has been made again, with another encoder."""
    path = digits / "run" / "inputs.json"
    sealed, trained_with = path.read_bytes(), read_sealed(path)
    assert len(trained_with["text"]) == 64
    write_sealed(path, {"text": "another"})
    assert run(sample, digits, "sample", tmp_path / "samples") == 2
    path.write_bytes(sealed)
    err = capsys.readouterr().err
    assert "was trained with another text encoder" in err and err.count("\n") == 1
    assert not (tmp_path / "samples").exists()


@pytest.mark.slow
def test_a_prompt_that_is_not_in_the_cache(digits, tmp_path, capsys):
    argv = ("--config.text.template=a {}",)
    assert run(finetune, digits, "train", tmp_path / "run", *argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: prompt 'zero' is not in ") and err.count("\n") == 1
    assert f"--to={digits / 'cache'}" in err and "'--template=a {}'" in err
    assert not (tmp_path / "run").exists()
