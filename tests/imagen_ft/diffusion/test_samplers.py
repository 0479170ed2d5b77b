"""Sampling from a Gaussian: the right noise is known, and every moment follows by recursion."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from imagen_ft.diffusion.ddpm import DDIM, DDPM, EulerAncestral
from imagen_ft.diffusion.dpm_solver import DPMpp, DPMpp2S
from imagen_ft.diffusion.edm import Euler, Heun
from imagen_ft.diffusion.forward_process import per_image, x0_from_eps
from imagen_ft.diffusion.sampler_from_config import make_sampler
from imagen_ft.diffusion.samplers import Prediction, noise_of_keys, sample
from imagen_ft.diffusion.schedule import Cosine, alpha_sigma
from imagen_ft.diffusion.unipc import UniPC
from launch.errors import InputError
from tests.support.affine_samplers import MEAN, STD, alpha_bar, predicted_moments

SHAPE, IMAGES = (4, 4, 2), 2048
VALUES = IMAGES * math.prod(SHAPE)


def exact_denoise(x_t, t):
    """x_0 by the noise E[eps | x_t], where x_0 is normal with that mean and deviation."""
    logsnr = Cosine().logsnr(t)
    alpha, sigma = alpha_sigma(per_image(logsnr))
    eps = sigma * (x_t - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
    return Prediction(x0_from_eps(x_t, eps, logsnr))


def draw(sampler, denoise, keys):
    strength = sampler.logvar_coeff if isinstance(sampler, DDPM) else sampler.eta
    return _draw(type(sampler), sampler.num_steps, strength, denoise, keys)


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def _draw(kind, num_steps, strength, denoise, keys):
    """The strength of the noise is an argument: fewer programs to compile."""
    noise = noise_of_keys(keys, SHAPE)
    return sample(kind(num_steps, strength), denoise, Cosine(), noise)[0]


@functools.cache
def keys(seed=0):
    return jax.random.split(jax.random.key(seed), IMAGES)


SAMPLERS = [
    DDPM(4),
    DDPM(4, 0.3),
    DDPM(4, 1.0),
    DDIM(4),
    DDIM(4, 1.0),
    DDPM(200),
    DDPM(200, 1.0),
    DDIM(200),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_moments(sampler):
    images = np.asarray(draw(sampler, exact_denoise, keys()), np.float64)
    mean, variance = predicted_moments(sampler)
    # Five standard errors of a mean and of a variance.
    assert abs(images.mean() - mean) < 5 * math.sqrt(variance / VALUES)
    assert abs(images.var() / variance - 1) < 5 * math.sqrt(2 / VALUES)
    if sampler.num_steps == 200:
        assert abs(mean - MEAN) < 1e-3 and abs(math.sqrt(variance) / STD - 1) < 0.04
    # Every pixel of every image has noise of its own.
    flat = images.reshape(IMAGES, -1)
    correlation = np.corrcoef(flat.T) - np.eye(flat.shape[1])
    assert np.abs(correlation).max() < 5 / math.sqrt(IMAGES)


def test_ddim_with_noise_is_ddpm():
    ddpm, ddim = (draw(sampler, exact_denoise, keys()) for sampler in (DDPM(4), DDIM(4, 1.0)))
    np.testing.assert_allclose(ddim, ddpm, atol=2e-3)


def test_ddim_is_deterministic_unless_told():
    x_t, x0, noise = np.random.default_rng(0).normal(size=(3, 2, *SHAPE)).astype(np.float32)

    def step(eta, noise):
        return DDIM(4, eta).update(x_t, Prediction(x0), noise, jnp.float32(-1), jnp.float32(2))

    np.testing.assert_array_equal(step(0.0, noise), step(0.0, -noise))
    assert not np.isclose(step(0.5, noise), step(0.5, -noise)).any()


# Wide, narrow, first and last steps.
STEPS = [(1.0, 0.5), (0.5, 0.49), (1.0, 0.999), (0.01, 0.001), (0.3, 0.1)]


def added_noise(sampler, learned, t, s):
    """What a step adds for each unit of noise, and the variances that Eq. 15 is between."""
    x_t, x0 = np.random.default_rng(0).normal(size=(2, 2, *SHAPE)).astype(np.float32)
    logsnr_t, logsnr_s = (Cosine().logsnr(jnp.float32(at)) for at in (t, s))

    def step(noise):
        noise = np.full(x_t.shape, noise, np.float32)
        after = sampler.update(x_t, Prediction(x0, learned), noise, logsnr_t, logsnr_s)
        return np.asarray(after, np.float64)

    alpha = alpha_bar(t) / alpha_bar(s)
    beta_small = (1 - alpha_bar(s)) / (1 - alpha_bar(t)) * (1 - alpha)
    return (step(4096.0) - step(-4096.0)) / 8192, 1 - alpha, beta_small


@pytest.mark.parametrize("coeff", [0.0, 0.3, 1.0, None])
@pytest.mark.parametrize(("t", "s"), STEPS)
def test_the_variance_that_a_step_adds(coeff, t, s):
    """Nichol and Dhariwal 2021, Eq. 15; learned for each value, where there is no constant."""
    learned = np.random.default_rng(1).uniform(0, 1, (2, *SHAPE)).astype(np.float32)
    std, beta, beta_small = added_noise(DDPM(4, coeff), learned, t, s)
    v = learned.astype(np.float64) if coeff is None else np.full_like(std, coeff)
    expected = np.exp(v * np.log(beta) + (1 - v) * np.log(beta_small))
    np.testing.assert_allclose(std**2, expected, rtol=2e-4)
    assert beta_small < beta


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_variance_that_a_step_of_ddim_adds(eta):
    """Song et al. 2021, Eq. 16."""
    for t, s in STEPS:
        std, _, beta_small = added_noise(DDIM(4, eta), None, t, s)
        np.testing.assert_allclose(std**2, eta**2 * beta_small, rtol=2e-4)


def keep(x_t, t):
    """Says that nothing is noise, so that all noise shows in the result."""
    return Prediction(x_t)


def test_noise_depends_on_the_key_alone():
    everyone = np.asarray(draw(DDPM(3, 0.3), keep, keys()[:7]))
    assert len(np.unique(everyone[:, 0, 0, 0])) == 7
    np.testing.assert_array_equal(draw(DDPM(3, 0.3), keep, keys()[4:5]), everyone[4:5])
    assert not np.isclose(everyone, draw(DDPM(3, 0.3), keep, keys(seed=1)[:7])).any()


def test_make_sampler():
    ddpm = ConfigDict(dict(name="ddpm", num_steps=3, logvar_coeff=0.3))
    assert make_sampler(ddpm) == DDPM(3, 0.3)
    assert make_sampler(ConfigDict(dict(name="ddim", num_steps=3, eta=0.5))) == DDIM(3, 0.5)
    with pytest.raises(InputError, match="num_steps must be at least 1, got 0"):
        make_sampler(ConfigDict(dict(name="ddpm", num_steps=0, logvar_coeff=0.0)))
    with pytest.raises(InputError, match=r"sampler\.name must be .*got 'plms'"):
        make_sampler(ConfigDict(dict(name="plms", num_steps=3)))
    # As the command line has it in place of 'learned'.
    assert make_sampler(ConfigDict(dict(ddpm, logvar_coeff="0.3"))) == DDPM(3, 0.3)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (dict(name="dpmpp"), DPMpp(3, 2)),
        # Where no noise is drawn, a learned variance is dropped.
        (dict(name="dpmpp", order=3, logvar_coeff="learned", eta=0.0), DPMpp(3, 3)),
        (dict(name="dpmpp_2s", spacing="leading", logvar_coeff=0), DPMpp2S(3, "leading")),
        (dict(name="unipc", solver_type="bh1"), UniPC(3, solver_type="bh1")),
        (dict(name="euler", churn=4), Euler(3, churn=4.0)),
        (dict(name="heun", logsnr_min=-8.0), Heun(3, logsnr_min=-8.0)),
        # Where it is drawn, it is used.
        (dict(name="euler_ancestral", logvar_coeff="learned"), EulerAncestral(3, None)),
        (dict(name="euler_ancestral"), EulerAncestral(3)),
    ],
)
def test_solvers_of_a_config(fields, expected):
    assert make_sampler(ConfigDict(dict(fields, num_steps=3))) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(name="dpmpp", logvar_coeff=0.5), "logvar_coeff must be 0 or left out for 'dpmpp'"),
        (dict(name="unipc", logvar_coeff="0.3"), "logvar_coeff must be 0 or left out for 'unipc'"),
        (dict(name="euler", eta=1.0), "eta must be 0 or left out for 'euler', .*got 1.0"),
        (dict(name="euler_ancestral", eta=1.0), "eta must be 0 or left out"),
        (
            dict(name="euler_ancestral", logvar_coeff=2.0),
            r"logvar_coeff must be a number in \[0, 1\], got 2\.0",
        ),
        (dict(name="dpmpp", order=4), "order must be at most 3, got 4"),
        (dict(name="dpmpp", order=2.0), r"order must be an integer, got 2\.0"),
        (dict(name="unipc", solver_type="bh3"), "solver_type must be one of bh1, bh2, got 'bh3'"),
        (dict(name="heun", churn=math.nan), "churn must be a number of at least 0, got nan"),
        (
            dict(name="heun", churn_max="much"),
            "churn_max must be a number of at least 0, got 'much'",
        ),
        (dict(name="unipc", logsnr_min=1.0), r"logsnr_min must be at most 0, got 1\.0"),
    ],
)
def test_fields_that_a_solver_cannot_have(fields, message):
    with pytest.raises(InputError, match=rf"sampler\.{message}"):
        make_sampler(ConfigDict(dict(fields, num_steps=3)))


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("ddpm", "logvar_coeff", 7.0),
        ("ddpm", "logvar_coeff", -0.1),
        ("ddpm", "logvar_coeff", "learnt"),
        ("ddim", "eta", -2.0),
        ("ddim", "eta", math.nan),
    ],
)
def test_strengths_of_noise_that_are_none(name, field, value):
    with pytest.raises(
        InputError, match=rf"sampler\.{field} must be a number in \[0, 1\], got {value!r}"
    ):
        make_sampler(ConfigDict({"name": name, "num_steps": 3, field: value}))
