"""A set has the same bytes however its work is split: real programs, sizes that do not divide."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_ft import generate
from imagen_ft.diffusion.stage import Stage
from imagen_ft.generation import worker
from launch.runtime import app
from tests.imagen_ft.trivial_generate import CONFIG
from tests.input_pipeline.synthetic.tiny_set import contents, flip_byte
from tests.support.small_cascade import NAMES, make_cascade, with_batches

# 34 images; of the stages one has batches of 5, the other of 10.
FIELDS = dict(names=NAMES, copies=2, per_shard=6, batch_size=10, stored=0)
COUNTS = {"ab": 4, "c": 3, "de": 10}


def last_bits(images):
    """Of each pixel, before it is rounded to a whole number: what differs first."""
    return jax.lax.bitcast_convert_type(jnp.float32(images), jnp.uint32).astype(jnp.uint8)


@pytest.fixture(scope="module")
def draw(tmp_path_factory):
    """Runs the command; it stores the last bits of the images that the cascade draws."""
    folder = tmp_path_factory.mktemp("config")
    cascade = with_batches(make_cascade(), 5, 0)
    (folder / "counts.json").write_text(json.dumps(COUNTS))
    (folder / "config.py").write_text(CONFIG.format(counts=str(folder / "counts.json"), **FIELDS))

    def load(config, mesh):
        return dataclasses.replace(cascade, batch_size=config.batch_size)

    def run(workdir, *flags, code=0):
        argv = ["generate", f"--config={folder / 'config.py'}", f"--workdir={workdir}", *flags]
        with pytest.raises(SystemExit) as ended:
            app.run(generate.main, generate.__doc__, generate.define_flags, argv)
        assert (ended.value.code or 0) == code

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "load_cascade", load)
        patch.setattr(worker, "code_version", lambda: "")  # git takes longer than all the rest
        patch.setattr("imagen_ft.cascade.drawing.to_uint8", last_bits)
        yield run


@pytest.fixture(scope="module")
def whole(draw, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets") / "whole"
    draw(folder)
    return folder


def images(folder):
    return {name: data for name, data in contents(folder).items() if ".lock" not in name}


@pytest.mark.parametrize("workers", [2, 3, 5])
def test_workers(draw, whole, tmp_path, workers):
    for number in reversed(range(workers)):
        draw(tmp_path / "set", f"--worker={number}", f"--num_workers={workers}")
    assert images(tmp_path / "set") == images(whole)


@pytest.mark.parametrize("flags", [(), ("--repair",)], ids=["go on", "repair"])
@pytest.mark.parametrize("shards", [[0], [1, 4], [2, 3, 5]], ids=str)
def test_shards_that_are_left(draw, whole, tmp_path, shards, flags):
    folder = shutil.copytree(whole, tmp_path / "set", ignore=shutil.ignore_patterns(".lock*"))
    paths = sorted(folder.glob("*.tfrecord-*"))
    for shard in shards:
        flip_byte(paths[shard], 70) if flags else paths[shard].unlink()
    draw(folder, *flags)
    assert images(folder) == images(whole)


def test_no_shard_with_what_is_no_number(draw, whole, tmp_path, capsys, monkeypatch):
    """Of 34 images the one at position 15, in the second batch of ten; a shard has six."""
    original, calls = Stage.sample, []

    def sample(stage, variables, keys, **inputs):
        images = original(stage, variables, keys, **inputs)
        calls.append(stage.denoiser.size)
        # The base has batches of five.
        return images.at[0].set(np.nan) if calls.count(4) == 4 and calls[-1] == 4 else images

    monkeypatch.setattr(Stage, "sample", sample)
    draw(tmp_path / "set", code=1)
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: stage base4 produced NaN or infinity for image "), said
    shards = [path.name.split("-")[2] for path in (tmp_path / "set").glob("*.tfrecord-*")]
    assert shards == ["00000"]
    monkeypatch.undo()
    draw(tmp_path / "set")
    assert images(tmp_path / "set") == images(whole)
