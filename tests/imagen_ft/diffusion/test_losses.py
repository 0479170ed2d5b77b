"""Losses against their definitions in float64, finite differences and what theory says."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from imagen_ft.diffusion.forward_process import PREDICTIONS, target
from imagen_ft.diffusion.losses import (
    DiffusionLoss,
    discretized_log_likelihood,
    level_losses,
    make_loss,
    min_snr_weight,
)
from imagen_ft.diffusion.schedule import Cosine, Linear, SquaredCos
from launch.errors import InputError
from tests.support.diffusion_losses import LEVELS, batch, log_likelihood, losses, make

SCHEDULES = [SquaredCos(), SquaredCos(8), Cosine(), Linear()]


@pytest.mark.parametrize("log_variance", [-14.0, -9.0, -3.0, 0.0])
@pytest.mark.parametrize("mean", [-1.3, -0.999, 0.0, 0.3017, 1.0])
def test_probabilities_of_all_levels(mean, log_variance):
    """They add up to one, and are a float64 cdf's far into the tails."""
    column = lambda values: np.float32(values).reshape(-1, 1, 1, 1)  # noqa: E731
    x0, ones = column(LEVELS), np.ones((256, 1, 1, 1), np.float32)
    log_probabilities = discretized_log_likelihood(x0, mean * ones, log_variance * ones)
    log_probabilities = np.asarray(log_probabilities, np.float64).ravel()
    assert math.isclose(np.exp(log_probabilities).sum(), 1, rel_tol=1e-4)
    expected = log_likelihood(LEVELS, np.float32(mean), log_variance)
    seen = expected > math.log(1e-9)
    np.testing.assert_allclose(log_probabilities[seen], expected[seen], rtol=1e-3, atol=1e-4)
    assert np.isfinite(log_probabilities).all() and (log_probabilities <= 0).all()


def test_bound_of_gaussian_pixels():
    """From a network that knows all of them, the bound is what x_1 says of x_0, and the rest."""
    schedule, std = SquaredCos(), 0.2
    rng = np.random.default_rng(0)
    # One image of every step, and more of the first.
    t = np.float32(np.append(np.ones(99), np.arange(1, 1001)) / 1000)
    column = lambda values: values[:, None, None, None]  # noqa: E731
    abar = column(1 / (1 + np.exp(-np.asarray(schedule.logsnr(t), np.float64))))
    pixels, eps = rng.normal(size=(2, len(t), 16, 16, 1))
    x0 = LEVELS[np.round(std * pixels * 127.5 + 127.5).astype(int)]
    x_t = np.sqrt(abar) * x0 + np.sqrt(1 - abar) * eps
    total = abar * std**2 + 1 - abar
    predicted, posterior_variance = (
        np.sqrt(abar) * std**2 / total * x_t,
        std**2 * (1 - abar) / total,
    )
    # The variance of p(x_s | x_t), as a part of the way from the small to the large one.
    late, before = abar[100:], abar[99:-1]
    beta = 1 - late / before
    small = beta * (1 - before) / (1 - late)
    variance = small + before * (beta / (1 - late)) ** 2 * posterior_variance[100:]
    coeff = np.append(np.ones(100), np.log(variance / small) / np.log(beta / small))
    said = (x_t - np.sqrt(abar) * predicted) / np.sqrt(1 - abar)
    output = np.concatenate([said, np.broadcast_to(column(2 * coeff - 1), said.shape)], axis=-1)
    inputs = [np.float32(a) for a in (output, x_t, x0, eps, t)]
    vlb = np.asarray(losses(DiffusionLoss(0.0, 0.001), make(schedule), *inputs)["vlb"], np.float64)
    # Mutual information of normal variables; nothing of it is left at the last step.
    bits = 0.5 * math.log2(total.flat[0] / (1 - abar.flat[0]))
    np.testing.assert_allclose(vlb[100:].sum(), bits, rtol=0.01)
    error = np.linspace(-8, 8, 10_001)
    error_density = np.exp(-0.5 * error**2) / np.exp(-0.5 * error**2).sum()
    spread = math.sqrt(posterior_variance.flat[0])
    rest = error_density @ -log_likelihood(0.0, error * spread, 2 * math.log(spread))
    np.testing.assert_allclose(vlb[:100].mean(), rest / math.log(2), rtol=0.02)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_loss_is_the_sum_of_its_parts(schedule, prediction):
    t = np.array([1, 2, 4, 7, 8]) / 8
    inputs = batch(schedule, t, prediction)
    computed = losses(DiffusionLoss(5.0, 0.001), make(schedule, prediction), *inputs)
    target_output = target(*inputs[2:4], schedule.logsnr(inputs[4]), prediction)
    simple = np.mean((inputs[0][..., :1].astype(np.float64) - target_output) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(computed["simple"], simple, rtol=1e-5)
    steps = 8 if schedule == SquaredCos(8) else 1000
    weight = np.asarray(min_snr_weight(schedule.logsnr(inputs[4]), 5.0, prediction), np.float64)
    total = weight * simple + 0.001 * steps * np.asarray(computed["vlb"], np.float64)
    np.testing.assert_allclose(computed["loss"], total, rtol=1e-5)


def test_without_a_learned_variance():
    output, *inputs = batch(Cosine(), [0.2, 0.7])
    computed = losses(DiffusionLoss(), make(Cosine(), learned=False), output[..., :1], *inputs)
    assert set(computed) == {"loss", "simple"}
    np.testing.assert_array_equal(computed["loss"], computed["simple"])


def test_an_output_of_less_precision():
    """Only the output is rounded; the arithmetic is that of float32."""
    output, *inputs = batch(SquaredCos(), [0.001, 0.3, 1.0])
    coarse = jnp.asarray(output, jnp.bfloat16)
    loss, denoiser = DiffusionLoss(5.0, 0.001), make(SquaredCos())
    computed = losses(loss, denoiser, coarse, *inputs)
    expected = losses(loss, denoiser, coarse.astype(jnp.float32), *inputs)
    for name in computed:
        assert computed[name].dtype == jnp.float32
        np.testing.assert_allclose(computed[name], expected[name], rtol=1e-6)


# SNR, gamma, and the weights of the errors of eps, x_0 and v, by hand.
@pytest.mark.parametrize(
    ("snr", "gamma", "weights"),
    [
        (4.0, 5.0, (1.0, 4.0, 4 / 5)),
        (20.0, 5.0, (1 / 4, 5.0, 5 / 21)),
        (0.25, 5.0, (1.0, 1 / 4, 1 / 5)),
        (3.0, 1.0, (1 / 3, 1.0, 1 / 4)),
        # What float32 does not hold; the weights that are 0 here are less than 1e-30.
        (math.exp(100.0), 5.0, (0.0, 5.0, 0.0)),
        (math.exp(-100.0), 5.0, (1.0, 0.0, 0.0)),
        (7.0, 0.0, (1.0, 1.0, 1.0)),
    ],
)
def test_min_snr_by_hand(snr, gamma, weights):
    logsnr = jnp.full((2,), math.log(snr), jnp.float32)
    computed = [min_snr_weight(logsnr, gamma, prediction)[1] for prediction in ("eps", "x0", "v")]
    np.testing.assert_allclose(computed, weights, rtol=1e-5, atol=1e-30)


def test_min_snr_weights_the_same_error_the_same():
    """Whatever it was said in, a guess of x_0 has one weighted error."""
    t = np.float32([0.05, 0.2, 0.5, 0.7, 0.95])
    rng = np.random.default_rng(0)
    x0, eps, guess = rng.normal(size=(3, len(t), 2, 2, 1))
    logsnr = np.asarray(Cosine().logsnr(t), np.float64)
    alpha, sigma = np.sqrt(1 / (1 + np.exp([-logsnr, logsnr])))[..., None, None, None]
    x_t = alpha * x0 + sigma * eps
    said = {"eps": (x_t - alpha * guess) / sigma, "x0": guess, "v": (alpha * x_t - guess) / sigma}
    weighted = []
    for prediction in PREDICTIONS:
        inputs = [np.float32(a) for a in (said[prediction], x_t, x0, eps, t)]
        denoiser = make(Cosine(), prediction, learned=False)
        weighted.append(losses(DiffusionLoss(2.0), denoiser, *inputs)["loss"])
    np.testing.assert_allclose(weighted[0], weighted[1], rtol=1e-4)
    np.testing.assert_allclose(weighted[2], weighted[1], rtol=1e-4)
    error = np.mean((guess - x0) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(weighted[1], np.minimum(np.exp(logsnr), 2) * error, rtol=1e-4)


def with_held_mean(loss, denoiser, output, fixed_output, inputs):
    """Each image's loss, with the bound's mean from another output: what stop_gradient means."""
    computed = loss(denoiser, output, *inputs)
    mixed = jnp.concatenate([fixed_output[..., :1], output[..., 1:]], axis=-1)
    steps = denoiser.schedule.num_train_timesteps or 1000
    bound = loss(denoiser, mixed, *inputs)["vlb"] - computed["vlb"]
    return computed["loss"] + loss.vlb_weight * steps * bound


def finite_differences(function, at, step=1e-5):
    """Central, of a number, by every value of the argument."""
    ways = step * np.eye(at.size).reshape(at.size, *at.shape)
    values = jax.jit(jax.vmap(function))(np.concatenate([at + ways, at - ways]))
    ahead, behind = np.split(np.asarray(values), 2)
    return np.reshape((ahead - behind) / (2 * step), at.shape)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "prediction"), [(SquaredCos(), "eps"), (Cosine(), "v"), (SquaredCos(8), "x0")]
)
def test_gradients_by_finite_differences(schedule, prediction):
    """With respect to the output and to a linear network's parameters, in float64."""
    loss, denoiser = DiffusionLoss(5.0, 0.01), make(schedule, prediction)
    t = np.array([1, 2, 5, 8]) / 8
    if schedule != SquaredCos(8):
        t = np.array([1, 2, 300, 1000]) / 1000
    with jax.enable_x64(True):
        output, *inputs = (a.astype(np.float64) for a in batch(schedule, t, prediction, size=2))
        weights = np.random.default_rng(1).normal(scale=0.3, size=(2, 2))

        def network(weights):
            return jnp.concatenate([inputs[0], output[..., 1:]], axis=-1) @ weights

        def of_output(changed, fixed_output):
            return with_held_mean(loss, denoiser, changed, fixed_output, inputs)

        def mean_loss(output):
            return loss(denoiser, output, *inputs)["loss"].mean()

        gradient = jax.jit(jax.grad(mean_loss))(output)
        expected = finite_differences(lambda changed: of_output(changed, output).mean(), output)
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-8)
        gradient = jax.jit(jax.grad(lambda weights: mean_loss(network(weights))))(weights)
        fixed_output = network(weights)
        expected = finite_differences(lambda w: of_output(network(w), fixed_output).mean(), weights)
        np.testing.assert_allclose(gradient, expected, rtol=1e-5)


def test_bound_trains_the_variance_alone():
    denoiser = make(SquaredCos())
    output, *inputs = batch(SquaredCos(), [0.001, 0.002, 0.5, 1.0])
    loss = DiffusionLoss(0.0, 0.001)
    bound = jax.jit(jax.grad(lambda output: loss(denoiser, output, *inputs)["vlb"].sum()))(output)
    assert (bound[..., :1] == 0).all() and (bound[..., 1:] != 0).all()


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_everything_is_finite(schedule, prediction):
    """From no noise to nothing else, off the steps and on them, however wrong the network is."""
    t = np.array([0, 1e-6, 4e-4, 0.001, 0.0011, 0.002, 0.003, 0.125, 0.25, 0.5, 0.875, 0.999, 1.0])
    denoiser, loss = make(schedule, prediction), DiffusionLoss(5.0, 0.001)
    output, *inputs = batch(schedule, t, prediction)

    @jax.jit
    def losses_and_gradients(output):
        mean = lambda output: (lambda found: (found["loss"].sum(), found))(  # noqa: E731
            loss(denoiser, output, *inputs)
        )
        (_, found), grad = jax.value_and_grad(mean, has_aux=True)(output)
        return found, grad

    for scale in (0.0, 1.0, 30.0):
        found, grad = losses_and_gradients(scale * output)
        assert all(np.isfinite(values).all() for values in found.values())
        assert np.isfinite(grad).all() and np.abs(grad).max() > 0


@pytest.mark.parametrize(
    ("fields", "learned", "expected"),
    [
        ({}, False, DiffusionLoss()),
        ({"min_snr_gamma": 5.0}, False, DiffusionLoss(5.0)),
        ({"min_snr_gamma": 5, "vlb_weight": 0.001}, True, DiffusionLoss(5, 0.001)),
    ],
)
def test_make_loss(fields, learned, expected):
    assert make_loss(ConfigDict(fields), make(Cosine(), learned=learned)) == expected


@pytest.mark.parametrize(
    ("fields", "learned", "message"),
    [
        ({"gamma": 5.0}, False, "loss has no field 'gamma'"),
        (
            {"min_snr_gamma": -1.0},
            False,
            r"loss\.min_snr_gamma must be finite and at least 0, got -1\.0",
        ),
        (
            {"vlb_weight": -0.001},
            True,
            r"loss\.vlb_weight must be finite and at least 0, got -0\.001",
        ),
        (
            {"min_snr_gamma": math.nan},
            False,
            r"loss\.min_snr_gamma must be finite and at least 0, got nan",
        ),
        (
            {"min_snr_gamma": math.inf},
            False,
            r"loss\.min_snr_gamma must be finite and at least 0, got inf",
        ),
        (
            {"vlb_weight": 0.001},
            False,
            r"loss\.vlb_weight must be 0 without learned_variance, got 0\.001",
        ),
        ({}, True, r"loss\.vlb_weight must be above 0 with learned_variance, .* got 0; set 0\.001"),
    ],
)
def test_a_loss_that_cannot_be(fields, learned, message):
    with pytest.raises(InputError, match=message) as error:
        make_loss(ConfigDict(fields), make(Cosine(), learned=learned))
    assert "\n" not in str(error.value)


def test_level_losses():
    t = np.float32([0.0, 0.05, 0.1, 0.35, 0.99, 1.0, 0.62])
    values = np.float32([1, 3, 5, 7, 9, 11, np.inf])
    expected = [2, 5, np.nan, 7, np.nan, np.nan, np.inf, np.nan, np.nan, 10]
    np.testing.assert_array_equal(jax.jit(level_losses)(values, t), np.float32(expected))
    halves = jax.jit(level_losses, static_argnums=2)(values, t, 2)
    np.testing.assert_array_equal(halves, np.float32([4, np.inf]))
