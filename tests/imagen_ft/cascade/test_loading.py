"""A run is taken only for what it was trained as."""

import contextlib
from unittest import mock

import jax
import pytest
from etils import epath
from ml_collections import ConfigDict

from configs.deepfloyd import sample
from imagen_ft.cascade.loading import check_same_model, with_dtypes
from imagen_ft.diffusion.from_config import make_denoiser, make_stages
from launch.errors import InputError
from launch.runtime.run import Run


def config(width=4, dtype="float32", length=77, class_names=("cat", "dog")):
    text = dict(length=length, model=dict(width=2))
    unet = dict(name="unet", width=width, dtype=dtype, remat=dtype == "bfloat16")
    return ConfigDict(dict(stage=dict(unet=unet), text=text, class_names=class_names))


RUN = Run(epath.Path("run"), config(), {}, "", epath.Path("run"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(width=8), r"stage\.unet\.width = 4, the config has 8: name another run"),
        (dict(length=16), r"text\.length = 77, the config has 16"),
        (dict(class_names=("dog", "cat")), r"class_names = .*, the config has \['dog', 'cat'\]"),
    ],
)
def test_a_run_of_another_model_is_refused(changes, said):
    with pytest.raises(InputError, match=f"run was trained with {said}"):
        check_same_model(RUN, config(**changes).stage, config(**changes))


def test_a_run_may_be_computed_otherwise():
    check_same_model(RUN, config(dtype="bfloat16").stage, config(dtype="bfloat16"))


@pytest.mark.parametrize(
    ("trained", "now", "said"),
    [
        (dict(cache="a", null="empty"), dict(cache="b", null="empty"), ""),
        (dict(cache="a", null="empty"), dict(weights="t5", max_length=9, null="empty"), ""),
        (dict(cache="a", null="empty"), dict(cache="a", null="zeros"), "text.null = empty"),
        (dict(cache="a", null="empty"), dict(model=dict(width=2), null="empty"), "text.cache = a"),
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


def test_training_has_no_auto():
    stage = sample.get_config().stages.base64.stage
    with pytest.raises(InputError, match=r"stage\.unet\.dtype=auto: a type such as float32"):
        make_denoiser(stage)
