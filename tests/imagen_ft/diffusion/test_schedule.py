import math

import numpy as np
import pytest
from ml_collections import ConfigDict

from imagen_ft.diffusion.schedule import (
    SCHEDULES,
    Cosine,
    Linear,
    SquaredCos,
    alpha_sigma,
    make_schedule,
)
from imagen_ft.diffusion.spacing import SPACINGS, sampling_times
from launch.errors import InputError

TIMES = np.linspace(0, 1, 1001).astype(np.float32)


@pytest.mark.parametrize("name", SCHEDULES)
def test_logsnr_falls(name):
    logsnr = np.asarray(make_schedule(name).logsnr(TIMES))
    assert logsnr.shape == TIMES.shape and np.isfinite(logsnr).all()
    assert (np.diff(logsnr) < 0).all()
    assert logsnr[0] > 9 and logsnr[-1] < (-5 if name == "scaled_linear" else -9)


def test_alpha_and_sigma():
    logsnr = np.linspace(-20, 20, 81).astype(np.float32)
    alpha, sigma = (np.asarray(a, np.float64) for a in alpha_sigma(logsnr))
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, atol=1e-6)
    np.testing.assert_allclose(2 * np.log(alpha / sigma), logsnr, atol=1e-5)


def test_cosine():
    t = TIMES[1:-1].astype(np.float64)
    alpha, sigma = (np.asarray(a, np.float64) for a in alpha_sigma(Cosine().logsnr(TIMES[1:-1])))
    # Squeezing t into the bounds of logsnr turns the angle by at most atan(exp(-10)).
    squeeze = math.exp(-10)
    np.testing.assert_allclose(alpha, np.cos(np.pi * t / 2), atol=1.1 * squeeze)
    np.testing.assert_allclose(sigma, np.sin(np.pi * t / 2), atol=1.1 * squeeze)


def test_cosine_keeps_its_bounds():
    bounds = Cosine(logsnr_min=-5.0, logsnr_max=9.0).logsnr(np.float32([0, 1]))
    np.testing.assert_allclose(bounds, [9, -5], rtol=1e-4)
    np.testing.assert_allclose(Cosine().logsnr(np.float32([0, 0.5, 1])), [20, 0, -20], atol=1e-2)


def test_linear():
    alpha, _ = alpha_sigma(Linear().logsnr(TIMES))
    log_abar = 2 * np.log(np.asarray(alpha, np.float64))
    fine = np.linspace(0, 1, 1000 * 20 + 1)
    beta = 1e-4 + (0.02 - 1e-4) * fine
    integral = np.concatenate([[0], np.cumsum((beta[1:] + beta[:-1]) / 2)]) / 20
    np.testing.assert_allclose(log_abar, -1e-4 - integral[::20], rtol=1e-3)
    # The discrete product of Ho et al. 2020, up to the size of its steps.
    log_product = np.cumsum(np.log1p(-np.linspace(1e-4, 0.02, 1000)))
    np.testing.assert_allclose(log_abar[1:], log_product, rtol=0.02, atol=4e-4)


@pytest.mark.parametrize("name", SCHEDULES)
def test_time_of_the_network(name):
    schedule = make_schedule(name)
    times = schedule.model_time(np.float32([0, 0.251, 1]))
    # Of a discrete schedule's 1,000 steps the first one is 0.
    expected = [0, 250, 999] if schedule.num_train_timesteps else [0, 251, 1000]
    np.testing.assert_allclose(times, expected)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_sampling_times_of_continuous_schedules(spacing):
    times = sampling_times(Cosine(), 32, spacing)
    assert times.shape == (33,) and times[-1] == 0 and (np.diff(times) < 0).all()
    assert times[0] == 1 if not spacing.startswith("leading") else times[0] < 0.98
    if spacing == "trailing":
        np.testing.assert_array_equal(times, (np.arange(33) / np.float32(32))[::-1])
    assert len(sampling_times(Cosine(), 3000, spacing)) == 3001


@pytest.mark.parametrize("schedule", [Cosine(), SquaredCos()], ids=str)
def test_a_single_step_begins_where_there_is_noise(schedule):
    for spacing in ("linspace", "trailing"):
        np.testing.assert_array_equal(sampling_times(schedule, 1, spacing), [1, 0])


@pytest.mark.parametrize(
    ("schedule", "num_steps", "spacing", "message"),
    [
        (Cosine(), 0, "trailing", "num_steps must be at least 1, got 0"),
        (
            SquaredCos(),
            1001,
            "trailing",
            "num_steps must be at most the schedule's 1000 steps, got 1001",
        ),
        (Cosine(), 8, "lu", "spacing must be one of linspace, .*trailing, karras, .*super100"),
        (
            SquaredCos(),
            28,
            "fast27",
            r"num_steps must be 27, of .* for sampler\.spacing='fast27', got 28",
        ),
        (SquaredCos(100), 27, "fast27", "spacing='fast27', got 27"),
    ],
)
def test_times_that_are_not_there(schedule, num_steps, spacing, message):
    with pytest.raises(InputError, match=message):
        sampling_times(schedule, num_steps, spacing)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_time_of_a_ratio(name):
    """The inverse; beyond its ends the schedule stays at them."""
    schedule = make_schedule(name)
    first = 1 / (schedule.num_train_timesteps or 500)
    times = np.linspace(first, 1, 500).astype(np.float32)
    if schedule.num_train_timesteps:
        times = np.round(times * schedule.num_train_timesteps) / schedule.num_train_timesteps
    found = np.asarray(schedule.time(schedule.logsnr(times)))
    np.testing.assert_allclose(found, times, atol=1e-6, rtol=2e-3 * (name == "linear") + 1e-6)
    ends = schedule.time(np.float32([200, -200]))
    np.testing.assert_allclose(ends, [first if schedule.num_train_timesteps else 0, 1], atol=1e-6)


@pytest.mark.parametrize("schedule", [Cosine(), Linear(), SquaredCos()], ids=str)
def test_spacings_of_sigma(schedule):
    """Karras et al. 2022, Eq. 5; of a discrete schedule the nearest steps."""
    for spacing, even in (("karras", lambda s: s ** (1 / 7)), ("exponential", np.log)):
        times = sampling_times(schedule, 10, spacing)
        sigmas = np.exp(-np.asarray(schedule.logsnr(times[:-1]), np.float64) / 2)
        gaps = np.diff(even(sigmas))
        rounding = 0.1 if schedule.num_train_timesteps else 1e-3
        np.testing.assert_allclose(gaps, gaps.mean(), rtol=rounding)
        most = min(math.exp(5.1), math.exp(-schedule.logsnr(np.ones(1, np.float32))[0] / 2))
        assert sigmas[0] == pytest.approx(most, rel=rounding)
        assert sigmas[-1] == pytest.approx(0.002, rel=1e-2) or times[-2] == pytest.approx(0.001)
    # All steps there are, each once.
    if schedule.num_train_timesteps:
        times = sampling_times(schedule, 1000, "karras")
        np.testing.assert_array_equal(np.round(times * 1000), np.arange(1000, -1, -1))


@pytest.mark.parametrize("schedule", [Cosine(), SquaredCos()], ids=str)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_the_noisiest_times_can_be_left_out(schedule, spacing):
    times = sampling_times(schedule, 20, spacing, -10.2)
    assert len(times) == 21 and (np.diff(times) < 0).all()
    ratios = schedule.logsnr(times)
    assert (ratios >= -10.2001).all()
    if not spacing.startswith("leading"):
        assert ratios[0] < -9.8
    np.testing.assert_array_equal(
        sampling_times(schedule, 20, spacing, -30.0), sampling_times(schedule, 20, spacing)
    )


def test_unknown_schedule():
    with pytest.raises(InputError, match=r"schedule must be .*got 'sigmoid'"):
        make_schedule("sigmoid")


def test_numbers_of_a_schedule():
    config = ConfigDict(dict(name="cosine", logsnr_min=-12.0, logsnr_max=15.0))
    assert make_schedule(config) == Cosine(-12.0, 15.0)
    np.testing.assert_allclose(make_schedule(config).logsnr(np.float32([0, 1])), [15, -12], 1e-4)
    assert make_schedule(dict(name="squaredcos_cap_v2", num_train_timesteps=100)) == SquaredCos(100)
    assert make_schedule(dict(name="linear")) == make_schedule("linear")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dict(name="cosine", beta_last=0.1), r"schedule\.beta_last is not a field of 'cosine'"),
        (dict(logsnr_min=-12.0), r"schedule must be .*got None"),
        (dict(name="cosine", logsnr_max="x"), r"schedule\.logsnr_max must be a number, got 'x'"),
        (dict(name="squaredcos_cap_v2", num_train_timesteps=0), "steps must be at least 1, got 0"),
        (
            dict(name="scaled_linear", num_train_timesteps=1e3),
            r"steps must be an integer, got 1000\.0",
        ),
        (dict(name="scaled_linear", num_train_timesteps=10**10), "at most 1000000"),
        (dict(name=["cosine"]), r"schedule must be .*got \['cosine'\]"),
        (dict(name="cosine", logsnr_min=20.0, logsnr_max=-20.0), "must be finite and fall"),
        (dict(name="linear", beta_last=-1.0), "must be finite and fall"),
        (dict(name="scaled_linear", beta_last=2.0), "must be finite and fall"),
        (dict(name="scaled_linear", beta_first=-0.1), "must be finite and fall"),
        (dict(name="scaled_linear", zero_terminal_snr=1), "snr must be True or False, got 1"),
    ],
)
def test_wrong_numbers_of_a_schedule(config, message):
    with pytest.raises(InputError, match=message):
        make_schedule(config)
