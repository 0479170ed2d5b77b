import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_ft.diffusion import forward_process

# Log signal-to-noise ratios of x_t and of the cleaner x_s: wide, narrow and extreme steps.
LOGSNR_T = np.float32([-20, -20, -4, 0, 0, 3, 10, -19.99])
LOGSNR_S = np.float32([20, -19.9, -3.9, 0.01, 8, 20, 10.5, -3])


def images(seed):
    shape = (len(LOGSNR_T), 2, 3, 2)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def column(values):
    return np.asarray(values, np.float64)[:, None, None, None]


def abar(logsnr):
    return column(1 / (1 + np.exp(-logsnr.astype(np.float64))))


def ddpm_posterior(x_t, x0, logsnr_t, logsnr_s):
    """Mean of q(x_{t-1} | x_t, x_0), beta and beta~ (Ho et al. 2020, Eq. 6 and 7)."""
    abar_t, abar_s = abar(logsnr_t), abar(logsnr_s)
    alpha = abar_t / abar_s
    beta = 1 - alpha
    mean = np.sqrt(abar_s) * beta / (1 - abar_t) * x0
    mean += np.sqrt(alpha) * (1 - abar_s) / (1 - abar_t) * x_t
    return mean, beta, (1 - abar_s) / (1 - abar_t) * beta


@pytest.mark.parametrize("coeff", [0.0, 0.3, 1.0])
def test_posterior(coeff):
    x_t, x0 = images(0), images(1)
    mean, log_variance = forward_process.posterior(x_t, x0, LOGSNR_T, LOGSNR_S, coeff)
    expected, beta, beta_small = ddpm_posterior(x_t, x0, LOGSNR_T, LOGSNR_S)
    np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-6)
    log_expected = coeff * np.log(beta) + (1 - coeff) * np.log(beta_small)
    np.testing.assert_allclose(log_variance, log_expected, rtol=1e-5, atol=1e-5)


def test_posterior_has_the_small_variance_by_default():
    x_t, x0 = images(0), images(1)
    _, log_variance = forward_process.posterior(x_t, x0, LOGSNR_T, LOGSNR_S)
    _, beta, beta_small = ddpm_posterior(x_t, x0, LOGSNR_T, LOGSNR_S)
    np.testing.assert_allclose(np.exp(log_variance), beta_small, rtol=1e-4)
    assert (beta_small < beta).all()


def test_posterior_of_one_time_for_the_whole_batch():
    x_t, x0 = images(0), images(1)
    one = forward_process.posterior(x_t, x0, jnp.float32(-1), jnp.float32(2), 0.3)
    each = forward_process.posterior(x_t, x0, *np.float32([[-1] * len(x0), [2] * len(x0)]), 0.3)
    np.testing.assert_allclose(one[0], each[0], rtol=1e-6)
    np.testing.assert_allclose(np.broadcast_to(one[1], each[1].shape), each[1], rtol=1e-6)


def test_add_noise():
    x0, eps, logsnr = images(0), images(1), LOGSNR_T
    expected = np.sqrt(abar(logsnr)) * x0 + np.sqrt(1 - abar(logsnr)) * eps
    np.testing.assert_allclose(forward_process.add_noise(x0, eps, logsnr), expected, atol=1e-6)


@pytest.mark.parametrize(
    "logsnr", [np.linspace(-8, 8, 8).astype(np.float32), np.array(1.5, np.float32)]
)
def test_eps_and_x0_imply_each_other(logsnr):
    x0, eps = images(0), images(1)
    x_t = forward_process.add_noise(x0, eps, logsnr)
    np.testing.assert_allclose(forward_process.x0_from_eps(x_t, eps, logsnr), x0, atol=1e-4)
    np.testing.assert_allclose(forward_process.eps_from_x0(x_t, x0, logsnr), eps, atol=1e-4)


def network_targets(x0, eps, logsnr):
    """The definitions, in float64."""
    alpha, sigma = np.sqrt(abar(logsnr)), np.sqrt(1 - abar(logsnr))
    return {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0}


@pytest.mark.parametrize("prediction", forward_process.PREDICTIONS)
@pytest.mark.parametrize("logsnr", [np.linspace(-8, 8, 8).astype(np.float32), np.float32([1.5])])
def test_targets_and_x0_imply_each_other(prediction, logsnr):
    x0, eps = images(0), images(1)
    x_t = forward_process.add_noise(x0, eps, logsnr)
    target = forward_process.target(x0, eps, logsnr, prediction)
    np.testing.assert_allclose(target, network_targets(x0, eps, logsnr)[prediction], atol=1e-6)
    implied = forward_process.x0_from_output(target, x_t, logsnr, prediction)
    np.testing.assert_allclose(implied, x0, atol=1e-4)


def test_eps_as_output_has_the_digits_of_x0_from_eps():
    x_t, eps = images(0), images(1)
    implied = forward_process.x0_from_output(eps, x_t, LOGSNR_T, "eps")
    np.testing.assert_array_equal(implied, forward_process.x0_from_eps(x_t, eps, LOGSNR_T))


def test_stratified_times():
    draw = jax.jit(forward_process.stratified_times, static_argnums=1)
    times = np.stack([draw(jax.random.key(seed), 8) for seed in range(100)])
    assert times.min() >= 0 and times.max() < 1
    np.testing.assert_allclose(np.diff(np.sort(times)), 1 / 8, atol=1e-6)
    # The batch as a whole is shifted uniformly.
    assert abs(times.min(axis=1).mean() - 1 / 16) < 0.015
    assert abs(times[:, 0].mean() - 0.5) < 0.12 and times[:, 0].std() > 0.2
