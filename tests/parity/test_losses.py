"""Our bound against its published definition, our weights against diffusers' SNR."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from scipy.special import ndtr

from imagen_ft.diffusion.denoiser import Denoiser
from imagen_ft.diffusion.losses import DiffusionLoss
from imagen_ft.diffusion.schedule import Cosine, Linear, SquaredCos
from tests.support.diffusion_losses import NoNetwork, batch, log_likelihood, losses, make

STEPS = 1000


# The published definition (improved-diffusion's gaussian_diffusion.py and losses.py), in float64.


def approximate_cdf(x):
    return 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def published_betas(steps):
    """With alphas of float32, as diffusers and we have them."""
    bar = lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2  # noqa: E731
    betas = [min(1 - bar((k + 1) / steps) / bar(k / steps), 0.999) for k in range(steps)]
    return 1 - (1 - np.float32(betas)).astype(np.float64)


def published_term(betas, k, output, x_t, x0, cdf=ndtr):
    """Bits per dimension of the bound's term at step k."""
    abar = np.cumprod(1 - betas)
    before = np.append(1.0, abar[:-1])
    small = betas * (1 - before) / (1 - abar)
    small[0] = small[1]
    column = lambda values: values[k][:, None, None, None]  # noqa: E731
    eps, variance = np.split(output.astype(np.float64), 2, axis=-1)
    predicted = (x_t - column(np.sqrt(1 - abar)) * eps) / column(np.sqrt(abar))
    of_x0 = column(betas * np.sqrt(before) / (1 - abar))
    of_x_t = column((1 - before) * np.sqrt(1 - betas) / (1 - abar))
    true_mean, mean = of_x0 * x0 + of_x_t * x_t, of_x0 * predicted + of_x_t * x_t
    true_log, part = column(np.log(small)), (variance + 1) / 2
    log_variance = part * column(np.log(betas)) + (1 - part) * true_log
    kl = log_variance - true_log - 1 + np.exp(true_log - log_variance)
    kl = 0.5 * (kl + (true_mean - mean) ** 2 * np.exp(-log_variance))
    nll = -log_likelihood(x0.astype(np.float64), mean, log_variance, cdf)
    terms = np.where((k == 0)[:, None, None, None], nll, kl)
    return terms.mean(axis=(1, 2, 3)) / math.log(2)


@pytest.mark.parametrize("steps", [8, 1000])
def test_bound_as_published(steps):
    schedule, k = SquaredCos(steps), np.arange(steps)
    inputs = batch(schedule, (k + 1) / steps)
    found = losses(DiffusionLoss(0.0, 0.001), make(schedule), *inputs)["vlb"]
    output, x_t, x0 = inputs[:3]
    wanted = published_term(published_betas(steps), k, output, x_t, x0)
    np.testing.assert_allclose(found, wanted, rtol=5e-5)


def test_the_published_cdf_is_an_approximation():
    """0.0007 of 1.55 bits over many images at the first step, at most 0.12 in one of 9 pixels."""
    schedule, k = SquaredCos(), np.zeros(500, int)
    inputs = batch(schedule, (k + 1) / 1000, error=1.0)
    found = losses(DiffusionLoss(0.0, 0.001), make(schedule), *inputs)["vlb"]
    exact, published = (
        published_term(published_betas(1000), k, *inputs[:3], cdf)
        for cdf in (ndtr, approximate_cdf)
    )
    np.testing.assert_allclose(found, exact, rtol=1e-4)
    assert 5e-4 < abs(published.mean() - exact.mean()) < 1e-3
    assert 0.1 < np.abs(published - exact).max() < 0.13


def alpha_bar(schedule, t):
    return jax.nn.sigmoid(schedule.logsnr(jnp.asarray(t)))


@pytest.mark.parametrize("schedule", [Cosine(), Linear()])
def test_bound_in_continuous_time(schedule):
    """A step is 1/1000; below two of them the variances are those of the published first one."""
    t = np.array([0.0, 0.0004, 0.001, 0.0015, 0.002, 0.1, 0.5, 0.9, 0.99])
    inputs = batch(schedule, t, error=0.1)
    found = losses(DiffusionLoss(0.0, 0.001), make(schedule), *inputs)["vlb"]
    output, x_t, x0 = (part.astype(np.float64) for part in inputs[:3])
    with jax.enable_x64(True):
        column = lambda t: np.asarray(alpha_bar(schedule, t))[:, None, None, None]  # noqa: E731
        abar, late, before = column(t), np.maximum(t, 0.001), np.maximum(t - 0.001, 0)
        abar_t, abar_s = column(late), column(before)
        abar_t2, abar_s2 = column(np.maximum(t, 0.002)), column(np.maximum(t, 0.002) - 0.001)
    eps, variance = np.split(output, 2, axis=-1)
    predicted = (x_t - np.sqrt(1 - abar) * eps) / np.sqrt(abar)
    small = np.log((1 - abar_t2 / abar_s2) * (1 - abar_s2) / (1 - abar_t2))
    part = (variance + 1) / 2
    log_variance = part * np.log(1 - abar_t / abar_s) + (1 - part) * small
    distance = np.sqrt(abar_s) * (1 - abar_t / abar_s) / (1 - abar_t) * (x0 - predicted)
    kl = log_variance - small - 1 + np.exp(small - log_variance)
    kl = 0.5 * (kl + distance**2 * np.exp(-log_variance))
    nll = -log_likelihood(x0, predicted, log_variance)
    wanted = np.where((t <= 0.001)[:, None, None, None], nll, kl).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(found, wanted / math.log(2), rtol=1e-3)


def theirs(prediction, gamma):
    """As diffusers' examples weight with their `compute_snr`, at every step."""
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    # Their float32 1 - abar has few digits at the first steps.
    scheduler.alphas_cumprod = scheduler.alphas.double().cumprod(0)
    snr = compute_snr(scheduler, torch.arange(STEPS)).double()
    clipped = torch.minimum(snr, torch.full_like(snr, gamma))
    return (clipped / {"eps": snr, "x0": 1.0, "v": snr + 1}[prediction]).numpy()


@pytest.mark.parametrize("gamma", [1.0, 5.0])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_min_snr(prediction, gamma):
    denoiser = Denoiser(NoNetwork(), SquaredCos(), 2, 0, 1, prediction=prediction)
    rng = np.random.default_rng(0)
    output, x_t, x0, eps = rng.normal(size=(4, STEPS, 2, 2, 1)).astype(np.float32)
    t = np.float32((np.arange(STEPS) + 1) / STEPS)
    found = jax.jit(DiffusionLoss(gamma), static_argnums=0)(denoiser, output, x_t, x0, eps, t)
    weights = np.asarray(found["loss"], np.float64) / found["simple"]
    np.testing.assert_allclose(weights, theirs(prediction, gamma), rtol=1e-5)
