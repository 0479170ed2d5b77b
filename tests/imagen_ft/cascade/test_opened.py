"""What `Cascade.load` takes, and what a loaded cascade is used as in Python."""

import jax
import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict
from PIL import Image

import imagen_ft.cascade.cascade as cascades
from imagen_ft.cascade import Cascade, grid, opened, to_pil
from imagen_ft.diffusion.from_config import make_stages
from imagen_ft.diffusion.stage import Stage
from launch.errors import InputError
from launch.runtime.config import load_config
from launch.runtime.run import Run
from tests.support.small_cascade import NAMES, SAMPLER, STAGES, TEXT, config, make_cascade


@pytest.fixture(scope="module")
def cascade():
    return make_cascade()


def test_configs_are_found_from_any_folder(tmp_path, monkeypatch):
    here = load_config("configs/digits/sample.py:runlocal")
    monkeypatch.chdir(tmp_path)
    assert load_config("configs/digits/sample.py:runlocal") == here
    assert opened.as_config("configs/digits/sample.py:runlocal") == here
    (tmp_path / "configs/digits").mkdir(parents=True)
    own = "import ml_collections\n\n\ndef get_config():\n    return ml_collections.ConfigDict()\n"
    (tmp_path / "configs/digits/sample.py").write_text(own)
    assert load_config("configs/digits/sample.py") == ConfigDict()  # what is here comes first
    with pytest.raises(InputError, match="no such file: configs/digits/simple"):
        load_config("configs/digits/simple.py")


def a_run(name, number, **fields):
    trained = dict(stage=STAGES[number][0], text=TEXT, class_names=NAMES, **fields)
    return Run(epath.Path("runs") / name, ConfigDict(trained), {}, "", epath.Path("runs") / name)


def test_runs_are_the_stages_of_a_cascade(monkeypatch):
    pictures = dict(count=4, sampler=SAMPLER, guidance_weight=3.0, threshold_percentile=99.0)
    runs = {"runs/base": a_run("base", 0, pictures=pictures), "runs/sr": a_run("sr", 1)}
    monkeypatch.setattr(opened, "open_run", runs.get)
    monkeypatch.setattr(opened.hub, "is_repository", lambda name: False)
    found = opened.as_config(["runs/base", epath.Path("runs/sr")])
    base, larger = make_stages(found).values()
    assert (base.guidance_weight, base.threshold_percentile) == (3.0, 99.0)
    assert (base.sampler.num_steps, larger.sampler.num_steps) == (2, 100)
    assert found.stages.base.run == "runs/base" and tuple(found.class_names) == NAMES
    assert list(opened.as_config("runs/base").stages) == ["base"]


def test_a_stage_that_enlarges_is_a_cascade_of_its_own(cascade, monkeypatch):
    def load_stages(config, encoder, mesh, base):
        stages = tuple(make_stages(config, base).values())
        return stages, cascade.variables[1:], cascade.digests[1:]

    pictures = dict(count=4, sampler=SAMPLER, guidance_weight=2.0)
    monkeypatch.setattr(opened, "open_run", {"runs/sr": a_run("sr", 1, pictures=pictures)}.get)
    monkeypatch.setattr(opened.hub, "is_repository", lambda name: False)
    monkeypatch.setattr(cascades, "load_stages", load_stages)
    alone = Cascade.load("runs/sr")
    assert repr(alone).endswith("sr: 4 to 8 px, ddpm of 2 steps, guidance 2.0)")
    low = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 1), np.uint8)
    assert alone.with_(guidance_weight=1.0).sample(NAMES, low=low).shape == (3, 8, 8, 1)
    for draw in (alone.sample, alone.path):
        with pytest.raises(InputError, match="no base; give images to enlarge as low"):
            draw(NAMES)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "config must be a config, a file, a run or weights, got none"),
        ("configs/no.py", "no such file: configs/no.py"),
        ("/no/such/run", "/no/such/run is not a run"),
        ("~/run", "/no/home/run is not a run"),
        ("", "run must be a run or weights, got ''"),
    ],
)
def test_what_cannot_be_loaded(source, message, monkeypatch):
    monkeypatch.setenv("HOME", "/no/home")
    with pytest.raises(InputError, match=message):
        Cascade.load(source)


def test_t5_takes_the_place_of_a_cache_and_of_nothing_else():
    with pytest.raises(InputError, match="text=x: this cascade has its own text encoder"):
        opened.with_t5(config(), "x")
    found = opened.with_t5(ConfigDict(dict(text=dict(weights="a", null="zeros"))), "deepfloyd:b/c")
    assert found.text.to_dict() == dict(weights="b/c", null="zeros")


def test_a_mesh_by_its_axes(cascade, monkeypatch):
    loaded = tuple(make_stages(config()).values()), cascade.variables, cascade.digests
    monkeypatch.setattr(cascades, "load_stages", lambda *_, **__: loaded)
    found = Cascade.load(config(), mesh={"data": -1})
    assert found.mesh.size == jax.device_count() and Cascade.load(config()).mesh is None


def test_a_call_with_settings_of_its_own(cascade):
    settings = dict(noise_augmentation=0.5, stages={"base4": dict(guidance_weight=2.0)})
    drawn, other = cascade.sample(NAMES), cascade.with_(**settings).sample(NAMES)
    count = Stage.sample._cache_size()
    np.testing.assert_array_equal(cascade.sample(NAMES, **settings), other)
    assert (drawn != other).any()
    np.testing.assert_array_equal(cascade.sample(NAMES), drawn)  # of that call alone
    assert Stage.sample._cache_size() == count  # numbers are inputs of the program
    with pytest.raises(InputError, match="no argument 'steps'"):
        cascade.sample(NAMES, steps=3)


def test_one_prompt_is_one_image(cascade):
    image = cascade.sample("ab", seed=3, batch_size=3)
    assert image.shape == (1, 8, 8, 1) and image.dtype == np.uint8
    np.testing.assert_array_equal(image, cascade.sample(["ab"], seed=3, batch_size=3))
    with pytest.raises(InputError, match="'abc' is not a class"):
        cascade.sample("abc")


def test_a_cascade_is_shown_in_one_line(cascade):
    assert repr(cascade) == (
        "Cascade(3 classes, batches of 100; base4: 4 px, ddpm of 2 steps, guidance 1.5; "
        "sr8: 4 to 8 px, ddpm of 2 steps)"
    )


def test_images_are_handed_on(cascade):
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), np.uint8)
    joined = grid(images, columns=3)
    assert joined.shape == (8, 18, 3) and (joined[4:, 12:] == 255).all()
    np.testing.assert_array_equal(joined[4:, 6:12], images[4])
    assert grid(images[:2]).shape == (4, 12, 3)
    whole, grey = to_pil(images), to_pil(images[0, ..., :1])
    assert [image.size for image in whole] == [(6, 4)] * 5 and isinstance(grey, Image.Image)
    np.testing.assert_array_equal(np.asarray(whole[1]), images[1])
    np.testing.assert_array_equal(np.asarray(grey), images[0, ..., 0])
    with pytest.raises(InputError, match="of the same size, got"):
        grid([images[0], images[0, 1:]])
    with pytest.raises(InputError, match="columns must be an integer of at least 1"):
        grid(images, columns=0)
