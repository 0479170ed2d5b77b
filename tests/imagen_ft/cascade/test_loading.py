"""A run is taken only for what it was trained as."""

import contextlib
import dataclasses
from unittest import mock

import jax
import pytest
from etils import epath
from ml_collections import ConfigDict

from configs.deepfloyd import sample
from imagen_ft.cascade import loading
from imagen_ft.cascade.loading import check_same_model, load_stages, with_dtypes
from imagen_ft.diffusion.from_config import make_alone, make_denoiser, make_stages
from imagen_ft.diffusion.stage import GUIDE
from launch.errors import InputError
from launch.runtime.run import Run
from tests.support import small_cascade


def config(width=4, dtype="float32", length=77, class_names=("cat", "dog")):
    text = dict(length=length, model=dict(width=2))
    unet = dict(name="unet", width=width, dtype=dtype, remat=dtype == "bfloat16")
    return ConfigDict(dict(stage=dict(unet=unet), text=text, class_names=class_names))


RUN = Run(epath.Path("run"), config(), {}, "", epath.Path("run"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(width=8), r"stage\.unet\.width must be 8, .* got 4; choose another run"),
        (dict(length=16), r"text\.length must be 16, as in the config, got 77"),
        (dict(class_names=("dog", "cat")), r"class_names must be \['dog', 'cat'\]"),
    ],
)
def test_a_run_of_another_model_is_refused(changes, said):
    with pytest.raises(InputError, match=f"run: {said}"):
        check_same_model(RUN, config(**changes).stage, config(**changes))


def test_a_run_may_be_computed_otherwise():
    check_same_model(RUN, config(dtype="bfloat16").stage, config(dtype="bfloat16"))


@pytest.mark.parametrize(
    ("trained", "now", "said"),
    [
        (dict(cache="a", null="empty"), dict(cache="b", null="empty"), ""),
        (dict(cache="a", null="empty"), dict(weights="t5", max_length=9, null="empty"), ""),
        (
            dict(cache="a", null="empty"),
            dict(cache="a", null="zeros"),
            r"text\.null must be zeros, as in the config, got empty",
        ),
        (
            dict(cache="a", null="empty"),
            dict(model=dict(width=2), null="empty"),
            r"text\.cache must be nothing, as in the config, got a",
        ),
    ],
)
def test_states_of_t5_are_known_by_their_digest(trained, now, said):
    before, after = config(), config()
    before.text, after.text = ConfigDict(trained), ConfigDict(now)
    run = Run(epath.Path("run"), before, {}, "", epath.Path("run"))
    with pytest.raises(InputError, match=said) if said else contextlib.nullcontext():
        check_same_model(run, after.stage, after)


@pytest.mark.parametrize(("capability", "dtype"), [("7.5", "float16"), ("8.9", "bfloat16")])
def test_auto_is_what_the_device_is_fast_in(capability, dtype, monkeypatch):
    """Samples and sets note the config that comes of it."""
    device = mock.Mock(jax.Device, compute_capability=capability, platform="gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    before = sample.get_config()
    after = with_dtypes(before)
    assert {stage.stage.unet.dtype for stage in before.stages.values()} == {"auto"}
    assert {stage.stage.unet.dtype for stage in after.stages.values()} == {dtype}
    assert with_dtypes(after) is after
    assert [stage.denoiser.model.dtype for stage in make_stages(after).values()] == [dtype] * 2


def guided(**guide):
    both = small_cascade.config()
    both.stages.base4.run, both.stages.sr8.run = "runs/base4", "runs/sr8"
    both.stages.base4.guide = guide
    return both


@pytest.mark.parametrize(
    ("guide", "expected"),
    [
        (dict(ema="short"), ("runs/base4", "short", False)),
        (dict(run="runs/early", best=True), ("runs/early", "main", True)),
    ],
)
def test_a_guide_is_loaded_with_its_stage(guide, expected, monkeypatch):
    """Another run, or other weights of the same; the digest tells of both."""

    def variables_of(run, denoiser, shape, mesh, ema, best):
        return {"params": (str(run.path), ema, best)}

    def digest_of(run, ema, best):
        return f"{run.path} {ema} {best}"

    monkeypatch.setattr(
        loading, "open_run", lambda path: dataclasses.replace(RUN, path=epath.Path(path))
    )
    monkeypatch.setattr(loading, "check_same_model", lambda *_: None)
    monkeypatch.setattr(loading, "check_same_text", lambda *_: None)
    monkeypatch.setattr(loading, "variables_of", variables_of)
    monkeypatch.setattr(loading, "digest_of", digest_of)
    stages, variables, digests = load_stages(guided(**guide), small_cascade.encoder())
    assert stages[0].guide == stages[0].denoiser and stages[1].guide is None
    own = ("runs/base4", "main", False)
    assert variables[0] == {"params": own, GUIDE: {"params": expected}}
    assert variables[1] == {"params": ("runs/sr8", "main", False)}
    assert len({*digests, "runs/base4 main False"}) == 3


def test_a_guide_makes_the_same_images():
    both = guided(run="runs/early", stage=guided(ema="x").stages.sr8.stage)
    with pytest.raises(InputError, match=r"base4\.guide\.stage\.size must be .*, 4, got 8"):
        make_stages(both)
    with pytest.raises(InputError, match="guide must be left out for a stage"):
        entry = guided(ema="x").stages.base4
        make_alone(entry, make_denoiser(entry.stage))
    shapes = loading.parameter_shapes(guided(ema="x"))
    assert shapes["base4.guide"] == shapes["base4"] and "sr8.guide" not in shapes


def test_training_has_no_auto():
    stage = sample.get_config().stages.base64.stage
    with pytest.raises(
        InputError, match=r"stage\.unet\.dtype must be a type such as float32 or bfloat16, got auto"
    ):
        make_denoiser(stage)
