"""What samplers draw against what theory says, for data whose noise is known in closed form.

The data are mixtures of Gaussians over images of four correlated pixels, which vary by themselves
along one direction and alike in all others; so theory needs one dimension only.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_ft.diffusion.ddpm import DDIM, DDPM
from imagen_ft.diffusion.forward_process import x0_from_eps
from imagen_ft.diffusion.samplers import Prediction, sample
from imagen_ft.diffusion.schedule import Cosine, alpha_sigma
from tests.support.affine_samplers import (
    MEAN,
    STD,
    affine_step,
    alpha_bar,
    predicted_moments,
)

IMAGES, SHAPE, PIXELS = 100_000, (2, 2, 1), 4
ALONG = np.array([0.8, 0.5, -0.3, 0.15])
ALONG = ALONG / np.linalg.norm(ALONG)
ACROSS_STD = 0.2
# Weights, and means and standard deviations along that direction.
GAUSSIAN = ((1.0,), (0.7,), (0.5,))
MIXTURE = ((0.3, 0.7), (-0.6, 0.8), (0.25, 0.15))


def covariance(along, across):
    return along * np.outer(ALONG, ALONG) + across * (np.eye(PIXELS) - np.outer(ALONG, ALONG))


def exact_denoise(data):
    """x_0 by the noise E[eps | x_t], with no use of the direction."""
    weights, means, stds = (np.array(values) for values in data)
    roots = [np.linalg.eigh(covariance(std**2, ACROSS_STD**2)) for std in stds]
    scales, axes = (np.stack(column).astype(np.float32) for column in zip(*roots, strict=True))
    centres = np.float32(means[:, None] * ALONG)

    def denoise(x_t, t):
        logsnr = Cosine().logsnr(t)
        alpha, sigma = alpha_sigma(logsnr)
        x = x_t.reshape(-1, 1, PIXELS) - alpha * centres[None]
        variance = alpha**2 * scales[None] + sigma**2  # [1, k, d], along the axes
        x = jnp.einsum("bkd,kde->bke", x, axes)
        logits = -0.5 * jnp.sum(x**2 / variance + jnp.log(variance), axis=-1)
        belongs = jax.nn.softmax(logits + np.log(weights)[None].astype(np.float32), axis=-1)
        score = -jnp.einsum("bk,bke,kde->bd", belongs, x / variance, axes)
        eps = -sigma * score.reshape(x_t.shape)
        return Prediction(x0_from_eps(x_t, eps, logsnr))

    return denoise


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def _draw(kind, num_steps, strength, data, noise):
    denoise = exact_denoise(data)
    return sample(kind(num_steps, strength), denoise, Cosine(), lambda step: noise[step])[0]


def draw(sampler, data, images=IMAGES):
    """What sampling began with and what it came to, [n, pixels]."""
    strength = sampler.logvar_coeff if isinstance(sampler, DDPM) else sampler.eta
    # By NumPy, which takes a tenth of the time.
    rng = np.random.default_rng(sampler.num_steps)
    noise = rng.standard_normal((sampler.num_steps + 1, images, *SHAPE), np.float32)
    drawn = _draw(type(sampler), sampler.num_steps, strength, data, noise)
    return [np.asarray(x, np.float64).reshape(images, PIXELS) for x in (noise[0], drawn)]


def predict_x0(x, abar, data):
    """E[x_0 | x_t] of one dimension."""
    weights, means, stds = (np.array(values).reshape(-1, 1) for values in data)
    alpha = math.sqrt(abar)
    variance = alpha**2 * stds**2 + 1 - abar
    log_density = np.log(weights) - 0.5 * ((x - alpha * means) ** 2 / variance + np.log(variance))
    belongs = np.exp(log_density - log_density.max(axis=0))
    belongs /= belongs.sum(axis=0)
    return (belongs * (means + alpha * stds**2 / variance * (x - alpha * means))).sum(axis=0)


def moments(values, masses):
    masses = masses / masses.sum()
    mean = masses @ values
    return np.array([mean, masses @ (values - mean) ** 2, masses @ (values - mean) ** 3])


def theory(sampler, data, points=1201):
    """First three central moments of one dimension of the samples, by quadrature over a grid."""
    grid = np.linspace(-6.0, 6.0, points)
    values, density = grid, np.exp(-0.5 * grid**2)
    for step in range(sampler.num_steps, 0, -1):
        abar_t, abar_s = (alpha_bar(k / sampler.num_steps) for k in (step, step - 1))
        x0 = predict_x0(values, abar_t, data)
        if step == 1:
            return moments(x0, density)
        a, b, added = affine_step(sampler, abar_t, abar_s)
        values = a * values + b * x0
        if added:
            spread = np.exp(-0.5 * (grid[:, None] - values) ** 2 / added)
            values, density = grid, spread @ density


def gaussian_variance(sampler, std):
    return theory(sampler, ((1.0,), (0.0,), (std,)))[1]


def data_moments(data):
    weights, means, stds = (np.array(values) for values in data)
    mean = weights @ means
    off = means - mean
    third = weights @ (off**3 + 3 * off * stds**2)
    return np.array([mean, weights @ (off**2 + stds**2), third])


SAMPLERS = [DDPM(10), DDPM(10, 0.3), DDPM(10, 1.0), DDIM(10), DDIM(10, 0.5)]


@pytest.mark.parametrize("data", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_mean_and_covariance_of_samples(sampler, data):
    _, images = draw(sampler, data)
    mean, variance, third = theory(sampler, data)
    expected = covariance(variance, gaussian_variance(sampler, ACROSS_STD))
    # Five standard errors, here and below.
    error = 5 * np.sqrt(np.diag(expected) / IMAGES)
    assert (np.abs(images.mean(axis=0) - mean * ALONG) < error).all()
    off = images - mean * ALONG
    products = off[:, :, None] * off[:, None, :]
    error = 5 * products.std(axis=0) / math.sqrt(IMAGES)
    assert error.max() < 0.02
    assert (np.abs(products.mean(axis=0) - expected) < error).all()
    # A mixture is lopsided, as well.
    cubes = (off @ ALONG) ** 3
    assert abs(cubes.mean() - third) < 5 * cubes.std() / math.sqrt(IMAGES)


def test_quadrature_agrees_with_the_recursion():
    """Where both exist, which is for Gaussian data."""
    for sampler in SAMPLERS:
        integrated = theory(sampler, ((1.0,), (MEAN,), (STD,)))
        np.testing.assert_allclose(integrated, [*predicted_moments(sampler), 0], atol=1e-6)


def slopes(errors):
    """Orders of convergence, from errors each at twice the steps of the one before."""
    return np.array([math.log2(abs(a / b)) for a, b in itertools.pairwise(errors)])


ORDERS = [DDPM(0), DDPM(0, 0.3), DDPM(0, 1.0), DDIM(0), DDIM(0, 0.5)]


def with_steps(sampler, num_steps):
    strength = sampler.logvar_coeff if isinstance(sampler, DDPM) else sampler.eta
    return type(sampler)(num_steps, strength)


def std_error(sampler, num_steps):
    """Of the standard deviation of Gaussian data; relative."""
    return math.sqrt(predicted_moments(with_steps(sampler, num_steps))[1]) / STD - 1


@pytest.mark.parametrize("sampler", ORDERS, ids=lambda s: f"{type(s).__name__} {s}")
def test_the_recursion_converges_at_first_order(sampler):
    errors = [std_error(sampler, num_steps) for num_steps in (1024, 2048, 4096, 8192)]
    orders = slopes(errors)
    assert (np.abs(orders - 1) < 0.04).all() and abs(orders[-1] - 1) < 0.01
    assert abs(errors[-1]) < 1e-3


def test_ddim_converges_as_fast_as_its_local_error_says():
    """A step h errs by the factor 1 - h^2/2 s^2/r^4, where r^2 = s^2 cos^2 + sin^2.

    DDIM turns x by the angle h; the exact solution r z has r'' = -r + s^2/r^3. The integral over
    the quarter turn, in N steps, is pi^2 (1 + s^2) / (16 s N).
    """
    expected = -(math.pi**2) * (1 + STD**2) / (16 * STD)
    assert 4096 * std_error(DDIM(1), 4096) == pytest.approx(expected, rel=1e-3)


def test_ddim_samples_converge_to_the_exact_flow():
    """From the same noise: every image, not only their distribution."""
    [_], [mean], [std] = GAUSSIAN

    def flow(noise, std_along, std_across):
        """With the cosine schedule alpha is 0 and sigma is 1 where it begins."""
        along = np.outer(noise @ ALONG, ALONG)
        return std_across * (noise - along) + std_along * along + mean * ALONG

    errors = []
    for num_steps in (8, 16, 32, 64):
        noise, images = draw(DDIM(num_steps), GAUSSIAN, 1000)
        stds = [math.sqrt(gaussian_variance(DDIM(num_steps), s)) for s in (std, ACROSS_STD)]
        np.testing.assert_allclose(images, flow(noise, *stds), atol=1e-3)
        errors.append(np.sqrt(np.mean((images - flow(noise, std, ACROSS_STD)) ** 2)))
    orders = slopes(errors)
    assert (np.diff(orders) > 0).all() and 0.9 < orders[-1] < 1


@pytest.mark.parametrize("coeff", [0.0, 0.3])
def test_ddpm_samples_converge_as_the_recursion_does(coeff):
    """The error of their variance, as far down as their number lets it be seen."""
    across = np.eye(PIXELS) - np.outer(ALONG, ALONG)
    sampled, exact = [], []
    for num_steps in (4, 8, 16):
        _, images = draw(DDPM(num_steps, coeff), GAUSSIAN)
        variance = np.sum((images @ across) ** 2) / (IMAGES * (PIXELS - 1))
        sampled.append(variance / ACROSS_STD**2 - 1)
        exact.append(gaussian_variance(DDPM(num_steps, coeff), ACROSS_STD) / ACROSS_STD**2 - 1)
    np.testing.assert_allclose(slopes(sampled), slopes(exact), atol=0.02)


@pytest.mark.parametrize("sampler", [DDPM(0), DDPM(0, 1.0), DDIM(0)], ids=str)
def test_a_mixture_is_approached_at_first_order(sampler):
    """The moments that samples have by theory come to the data's own."""
    steps = (10, 20, 40) if isinstance(sampler, DDPM) else (64, 128, 256)
    errors = [
        np.linalg.norm(theory(with_steps(sampler, n), MIXTURE) - data_moments(MIXTURE))
        for n in steps
    ]
    assert (np.abs(slopes(errors) - 1) < 0.15).all()
    assert errors[-1] < 0.04
