"""Settings of a cascade by name, in a notebook: what they change, and what is refused."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

import imagen_ft.cascade.cascade as cascades
from imagen_ft.cascade import Cascade, film, show
from imagen_ft.cascade.changes import LOADING, SAMPLING, changed
from imagen_ft.diffusion.from_config import make_stages
from launch.errors import InputError
from tests.support.small_cascade import NAMES, config, make_cascade


@pytest.fixture(scope="module")
def cascade():
    return make_cascade()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(steps=3), "no setting 'steps'"),
        (dict(run="runs/other"), "no setting 'run'"),
        (dict(stages={"sr9": {}}), "no stage 'sr9'"),
        (dict(stages=["sr8"]), "stages must be a dict from stage names to settings, got"),
        (dict(stages={"sr8": 3}), r"stages\['sr8'\] must be a dict of settings, got 3"),
        (dict(stages={"sr8": dict(run="x")}), "no setting of sr8 'run'"),
        (dict(guidance_weight="2"), "guidance_weight must be a number, got '2'"),
        (dict(guidance_weight=-1), r"guidance_weight must be finite and at least 0, got -1\.0"),
        (dict(num_steps=2.5), r"num_steps must be an integer, got 2\.5"),
        (dict(num_steps=0), "sampler.num_steps must be at least 1, got 0"),
        (dict(logvar_coeff="learnt"), "logvar_coeff must be a number or 'learned', got 'learnt'"),
        (dict(logvar_coeff="learned"), "set stage.learned_variance"),
        (dict(logvar_coeff=2), r"sampler\.logvar_coeff must be a number in \[0, 1\], got 2\.0"),
        (dict(guidance_interval=0.5), "guidance_interval must be two numbers, got 0.5"),
        (dict(sampler="plms"), "sampler.name must be one of 'ddpm', 'ddim'"),
        (dict(sampler="ddim"), "config.stages.base4.sampler.eta is missing"),
        (dict(spacing="lu"), r"sampler\.spacing must be .*got 'lu'"),
        (dict(sampler="unipc", logvar_coeff=0.5), "logvar_coeff must be 0 or left out for 'unipc'"),
        (dict(sampler="heun", churn=-1), r"churn must be a number of at least 0, got -1\.0"),
        (dict(sampler="dpmpp", order=4), r"sampler\.order must be at most 3, got 4"),
        (dict(guidance_schedule="step"), "guidance_schedule must be one of constant, linear, cos"),
        (dict(guidance_rescale=1.5), r"guidance_rescale must be a fraction in \[0, 1\], got 1\.5"),
        (dict(guide=dict(ema="short")), "no setting 'guide'"),
        (dict(cads_scale=-0.1), r"cads_scale must be finite and at least 0, got -0\.1"),
        (
            dict(cads_interval=(0.9, 0.6)),
            r"cads_interval must be two increasing numbers in \[0, 1\], got \(0\.9, 0\.6\)",
        ),
        (dict(batch_size=0), "config.batch_size must be at least 1, got 0"),
    ],
)
def test_changes_that_are_refused(cascade, changes, message):
    with pytest.raises(InputError, match=message):
        cascade.with_(**changes)


@pytest.mark.slow
def test_another_way_of_sampling_is_that_of_another_config(cascade, monkeypatch):
    def load_stages(config, *_):
        return tuple(make_stages(config).values()), cascade.variables, cascade.digests

    monkeypatch.setattr(cascades, "load_stages", load_stages)
    common = dict(logvar_coeff=0.3, guidance_weight=np.float32(2), batch_size=3)
    own = dict(sampler="ddim", num_steps=3, eta=0.5, noise_augmentation=0.5, batch_size=2)
    other = cascade.with_(**common, stages={"sr8": own})
    theirs = config()
    theirs.batch_size = 3
    base, larger = theirs.stages.base4, theirs.stages.sr8
    base.sampler = dict(name="ddpm", num_steps=2, logvar_coeff=0.3)
    base.guidance_weight = larger.guidance_weight = 2.0
    larger.sampler = dict(name="ddim", num_steps=3, logvar_coeff=0.3, eta=0.5)
    larger.update(noise_augmentation=0.5, batch_size=2)
    loaded, at_once = Cascade.load(theirs), Cascade.load(config(), **common)
    images = other.sample(NAMES, every_stage=True)
    jax.tree.map(np.testing.assert_array_equal, images, loaded.sample(NAMES, every_stage=True))
    assert other.rounding() == loaded.rounding() and other.config == loaded.config == theirs
    # A program is compiled for each way of sampling: a stage that does not change keeps its own.
    assert other.stages == loaded.stages and other.stages[0] == at_once.stages[0]
    assert other.variables is cascade.variables
    assert other.with_().stages == other.stages != cascade.stages
    assert cascade.config == config()


def test_strengths_of_noise_stay_behind_with_their_sampler(cascade):
    """Where another sampler has no such noise; those two that bear with each other keep them."""
    given = config().stages.sr8.sampler
    for name in ("unipc", "dpmpp", "heun"):
        other = cascade.with_(sampler=name, num_steps=2)
        sampler = other.config.stages.sr8.sampler
        assert sampler.to_dict() == dict(name=name, num_steps=2) and given.logvar_coeff == 0.1
        assert type(other.stages[1].sampler).__name__.lower() == name
    kept = cascade.with_(sampler="euler_ancestral").stages[1].sampler
    assert kept.logvar_coeff == 0.1


def test_paths_are_texts_in_the_config():
    guide = dict(run=Path("~/weak"), lora=epath.Path("gs://bucket/file"))
    changes = dict(run=Path("a/run"), guide=guide, stages={"sr8": dict(lora="~/file")})
    base4, sr8 = changed(config(), changes, loading=True).stages.values()
    home = os.path.expanduser("~")
    assert base4.run == sr8.run == "a/run" and sr8.lora == f"{home}/file"
    assert base4.guide.to_dict() == dict(run=f"{home}/weak", lora="gs://bucket/file")


def test_every_setting_is_in_the_config_under_its_name():
    """Each setting changes one field of one stage, and nothing else."""
    values = {"an integer": 7, "True or False": True, "two numbers": (0.25, 0.5)}
    values |= {"a number": 0.5, "a number or 'learned'": 0.5, "a name": "x", "a path": "x"}
    values[LOADING["guide"].kind.words] = dict(ema="short", best=True)
    before, fields = config(), set()
    for name, setting in {**SAMPLING, **LOADING}.items():
        value = values[setting.kind.words]
        after = changed(before, {"stages": {"sr8": {name: value}}}, loading=True)
        node = after.stages.sr8
        for field in setting.field.split("."):
            node = node[field]
        found = node.to_dict() if isinstance(node, ConfigDict) else node
        assert found == value and before == config()
        assert after.stages.base4 == before.stages.base4
        fields.add(setting.field)
    assert len(fields) == len(SAMPLING) + len(LOADING)
    common = changed(before, dict(noise_augmentation=0.7), loading=False).stages
    assert (common.base4.noise_augmentation, common.sr8.noise_augmentation) == (0.0, 0.7)


def test_pictures_in_a_notebook(tmp_path):
    small, large = np.zeros((3, 4, 4, 1), np.uint8), np.zeros((3, 8, 8, 3), np.uint8)
    picture = show(large, ["a", "b", "c"])
    assert picture._repr_png_().startswith(b"\x89PNG")
    picture.save(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes() == picture.png
    assert show([small, large], "abc", columns=1).png != picture.png
    assert film(np.stack([small] * 5), "abc", 2).png.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("images", "captions", "message"),
    [
        (
            np.zeros((2, 4, 4, 1)),
            None,
            r"image 0 must be uint8 \[h, w, c\], got float64 \[4, 4, 1\]",
        ),
        (np.zeros((2, 4, 4), np.uint8), None, r"must be uint8 \[h, w, c\], got uint8 \[4, 4\]"),
        (
            np.zeros((2, 4, 4, 1), np.uint8),
            ["a"],
            "captions must have one string for each of 2 images, got 1",
        ),
        ([], None, "there must be at least one image, got none"),
    ],
)
def test_pictures_that_cannot_be_shown(images, captions, message):
    with pytest.raises(InputError, match=message):
        show(images, captions)
