"""How fast the moving averages forget."""

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from launch.errors import InputError
from launch.runtime.ema import make_decays, power_of


def decays(**spec):
    decay = make_decays(ConfigDict(dict(main=spec)))["main"]
    return [float(decay(jnp.int32(n))) for n in (0, 1, 10, 1000)]


def test_schedules():
    np.testing.assert_allclose(decays(decay=0.9, schedule="constant"), [0.9] * 4, rtol=1e-6)
    expected = [0.1, 2 / 11, 11 / 20, 0.9]
    np.testing.assert_allclose(decays(decay=0.9, schedule="warmup"), expected, rtol=1e-6)
    np.testing.assert_allclose(decays(decay=0.9), expected, rtol=1e-6)


# Karras et al. 2024, section 3.1: widths of 5% and 10% are gamma 16.97 and 6.94.
@pytest.mark.parametrize(("width", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_the_published_powers(width, gamma):
    assert power_of(width) == pytest.approx(gamma, abs=0.005)


def test_power_weighs_steps_by_a_power_of_their_number():
    gamma, steps, average = power_of(0.2), 4000, 0.0
    values = np.random.default_rng(0).normal(size=steps)
    decay = make_decays(ConfigDict(dict(main=dict(schedule="power", relative_width=0.2))))["main"]
    for n, value in enumerate(values):
        kept = np.float64(decay(np.float64(n)))
        average = kept * average + (1 - kept) * value
    weights = np.arange(1, steps + 1) ** gamma
    assert average == pytest.approx(np.average(values, weights=weights), rel=0.02)
    # What the width means: the standard deviation of the time that the weights speak of.
    times = np.arange(steps) / steps
    mean = np.average(times, weights=weights)
    spread = np.sqrt(np.average((times - mean) ** 2, weights=weights))
    assert spread == pytest.approx(0.2, rel=0.01)


def test_several():
    config = ConfigDict(dict(main=dict(decay=0.9), slow=dict(decay=0.999)))
    assert list(make_decays(config)) == ["main", "slow"] and make_decays(ConfigDict()) == {}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dict(slow=dict(decay=0.9)), "config.ema must have 'main'"),
        (dict(main=dict(decay=1.0)), r"config\.ema\.main\.decay must be between 0 and 1, got 1\.0"),
        (dict(main=dict(decay=0.0)), r"config\.ema\.main\.decay must be between 0 and 1, got 0\.0"),
        (dict(main=dict(schedule="sine")), r"main\.schedule must be one of 'constant'"),
        (dict(main=dict(schedule="power", decay=0.9)), r"needs config\.ema\.main\.relative_width"),
        (
            dict(main=dict(schedule="power", relative_width=0.3)),
            r"relative_width must be between 0 and 0\.28, got 0\.3",
        ),
    ],
)
def test_bad_numbers(config, message):
    with pytest.raises(InputError, match=message):
        make_decays(ConfigDict(config))
