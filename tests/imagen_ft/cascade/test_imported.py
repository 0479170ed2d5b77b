"""The scheduler of imported weights beside a config's stage."""

import json

import pytest
from ml_collections import ConfigDict

from configs.deepfloyd import sample
from imagen_ft.cascade.imported import as_imported
from launch.errors import InputError
from tests.imagen_ft.weights.tiny_weights import SCHEDULER


@pytest.fixture
def config(tmp_path):
    """A function of a scheduler's fields and the stage's: a config of one stage."""

    def make(scheduler, **fields):
        folder = tmp_path / "pipeline" / "scheduler"
        folder.mkdir(parents=True)
        (folder / "scheduler_config.json").write_text(json.dumps({**SCHEDULER, **scheduler}))
        entry = sample.get_config().stages.base64
        entry.run = f"deepfloyd:{tmp_path / 'pipeline'}"
        with entry.ignore_type():
            entry.update(fields)
        return ConfigDict(dict(stages=dict(base64=entry)))

    return make


@pytest.mark.parametrize(
    ("scheduler", "fields", "said"),
    [
        ({}, {}, None),
        ({}, dict(sampler=dict(spacing="smart100")), None),
        ({}, dict(sampler=dict(name="ddim")), None),
        (dict(sample_max_value=1.0), dict(threshold_maximum=1.0, threshold_percentile=99.5), None),
        (dict(variance_type="fixed_small"), dict(sampler=dict(logvar_coeff=0.0)), None),
        (
            {},
            dict(sampler=dict(spacing="trailing")),
            "spacing='trailing' (there 'leading')",
        ),
        ({}, dict(sampler=dict(logvar_coeff=0.3)), "sampler.logvar_coeff=0.3 (there 'learned')"),
        (
            {},
            dict(threshold_percentile=99.5, threshold_maximum=float("inf")),
            "threshold_percentile=99.5 (there 95.0), threshold_maximum=inf (there 1.5)",
        ),
        (dict(thresholding=False), {}, "threshold_percentile=95.0 (there 100.0)"),
        (
            dict(thresholding=False, clip_sample=False),
            dict(threshold_percentile=100.0),
            "threshold_percentile=100.0 (there 'none')",
        ),
    ],
)
def test_a_stage_that_draws_otherwise_is_said(config, capsys, scheduler, fields, said):
    before = config(scheduler, **fields)
    assert as_imported(before) is before
    err = capsys.readouterr().err
    assert err.count("\n") == bool(said)
    assert said is None or said in err


@pytest.mark.parametrize(
    ("variance_type", "coeff"),
    [("fixed_small", 0.0), ("fixed_small_log", 0.0), ("fixed_large", 1.0)],
)
def test_a_fixed_variance_takes_the_place_of_the_learned(config, capsys, variance_type, coeff):
    before = config(dict(variance_type=variance_type))
    after = as_imported(before)
    assert after.stages.base64.sampler.logvar_coeff == coeff
    assert before.stages.base64.sampler.logvar_coeff == "learned"
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"has variance_type={variance_type!r}" in err


@pytest.mark.parametrize(
    ("scheduler", "schedule"),
    [({}, "cosine"), (dict(num_train_timesteps=100), "squaredcos_cap_v2")],
)
def test_another_noise_schedule_is_refused(config, scheduler, schedule):
    wrong = config(scheduler)
    wrong.stages.base64.stage.schedule = schedule
    with pytest.raises(InputError, match=r"stages\.base64\.stage\.schedule must be .*as for the w"):
        as_imported(wrong)


@pytest.mark.parametrize(
    ("field", "value"),
    [("sample_max_value", "1"), ("num_train_timesteps", 10**9), ("thresholding", "no")],
)
def test_a_scheduler_of_wrong_kinds_is_refused(config, field, value):
    with pytest.raises(
        InputError, match=f"scheduler_config.json: {field} must be .*, got {value!r}"
    ):
        as_imported(config({field: value}))


def test_weights_alone_say_nothing(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    alone = sample.get_config()
    for stage in alone.stages.values():
        stage.run = f"deepfloyd:{tmp_path}"
    assert as_imported(alone) is alone and not capsys.readouterr().err
