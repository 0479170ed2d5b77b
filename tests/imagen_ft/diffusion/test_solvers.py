"""Solvers where the answer is known: orders of convergence, and finite numbers at all sizes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from imagen_ft.diffusion.ddpm import DDIM, DDPM, EulerAncestral
from imagen_ft.diffusion.dpm_solver import FEW_STEPS, DPMpp, DPMpp2S, phi
from imagen_ft.diffusion.edm import Euler, Heun
from imagen_ft.diffusion.samplers import Interval, Prediction, sample
from imagen_ft.diffusion.schedule import Cosine, Linear, ScaledLinear, SquaredCos, alpha_sigma
from imagen_ft.diffusion.spacing import SIGMA_SPACINGS, SPACINGS, sampling_times
from imagen_ft.diffusion.unipc import UniPC
from tests.support.solver_steps import compiled_step, intervals, solve

# Weights, means and standard deviations of a mixture of Gaussians.
MIXTURE = (0.3, 0.7), (-0.6, 0.8), (0.5, 0.4)
START = np.linspace(-1.5, 1.5, 7).reshape(-1, 1, 1, 1)
# Of lambda, between which the flow is followed.
BEGIN, END = -4.5, 1.5


def predict_x0(x, logsnr):
    """E[x_0 | x_t] of the mixture, for one value an image."""
    weights, means, stds = map(jnp.asarray, MIXTURE)
    alpha, sigma = alpha_sigma(logsnr)
    variance = alpha**2 * stds**2 + sigma**2
    off = x.reshape(-1, 1) - (alpha * means)[None]
    belongs = jax.nn.softmax(
        jnp.log(weights / jnp.sqrt(variance))[None] - off**2 / variance[None] / 2
    )
    x0 = belongs * (means[None] + (alpha * stds**2 / variance)[None] * off)
    return x0.sum(axis=1).reshape(x.shape)


@functools.cache
def exact_flow():
    """Where x goes, by the differential equation of x / alpha over lambda."""
    predict = jax.jit(predict_x0)

    def slope(lam, y):
        logsnr = jnp.float64(2 * lam)
        return np.asarray(predict(alpha_sigma(logsnr)[0] * y, logsnr)) - y

    ends = [float(alpha_sigma(jnp.float64(2 * lam))[0]) for lam in (BEGIN, END)]
    accuracy = dict(method="DOP853", rtol=1e-11, atol=1e-13)
    solution = solve_ivp(slope, (BEGIN, END), START.ravel() / ends[0], **accuracy)
    return (solution.y[:, -1] * ends[1]).reshape(START.shape)


def errors(sampler, counts):
    """Distances from the exact flow, in steps of equal lambda."""
    schedule = Cosine()
    step = compiled_step(
        sampler, lambda x, t: Prediction(predict_x0(x, schedule.logsnr(t))), schedule
    )
    found = []
    for count in counts:
        lambdas = np.linspace(BEGIN, END, count + 1)
        # Two short steps first, for a memory begins with lower orders.
        start = BEGIN + (END - BEGIN) / count * np.array([0.0, 1 / 64, 1 / 32])
        times = schedule.time(2.0 * jnp.asarray(np.append(start, lambdas[1:])))
        images = solve(sampler, step, jnp.asarray(START), intervals(schedule, times, left=9))
        found.append(np.linalg.norm(images - exact_flow()))
    return found


# UniPC's corrector adds one to the predictor's order.
ORDERS = [
    (DDIM(99), 1),
    (Euler(99), 1),
    (DPMpp(99, 1), 1),
    (DPMpp(99, 2), 2),
    (DPMpp(99, 3), 3),
    (DPMpp2S(99), 2),
    (Heun(99), 2),
    (UniPC(99, 1), 2),
    (UniPC(99, 2), 3),
    (UniPC(99, 2, "bh1"), 3),
    (UniPC(99, 3), 4),
]


@pytest.mark.parametrize(("sampler", "order"), ORDERS, ids=str)
def test_order_of_convergence(sampler, order):
    with jax.enable_x64(True):
        coarse, fine = errors(sampler, (100, 200))
    assert abs(math.log2(coarse / fine) - order) < 0.2


def test_phi():
    """Against their integrals, where the series and the recursion meet."""
    z = np.array([-8.0, -1.0, -0.51, -0.49, -0.01, 0.0, 0.3])
    theta = (np.arange(20_000) + 0.5) / 20_000
    for k in (1, 2, 3, 4):
        found = np.array([phi(k, jnp.float32(number)) for number in z])
        kernel = theta ** (k - 1) / math.factorial(k - 1)
        expected = (np.exp((1 - theta) * z[:, None]) * kernel).mean(axis=1)
        np.testing.assert_allclose(found, expected, rtol=2e-5)


SHAPE = (2, 2, 2, 1)


def test_solvers_of_first_order_are_ddim():
    x = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)

    def denoise(x, t):
        return Prediction(jnp.tanh(3 * x))

    def draw(sampler):
        noise = lambda step: jnp.asarray(x) * (1 + 0.1 * step)  # noqa: E731
        return jax.jit(lambda: sample(sampler, denoise, Cosine(), noise)[0])()

    expected = draw(DDIM(5, 0.0, "leading"))
    for sampler in (Euler(5, spacing="leading"), DPMpp(5, 1, "leading")):
        np.testing.assert_allclose(draw(sampler), expected, atol=2e-5)
    ancestral = draw(EulerAncestral(5, 0.3, "leading"))
    np.testing.assert_allclose(ancestral, draw(DDPM(5, 0.3, "leading")), atol=2e-5)
    assert np.abs(draw(DPMpp(5, 2, "leading")) - expected).max() > 1e-3


SCHEDULES = [Cosine(), Linear(), SquaredCos(), ScaledLinear(zero_terminal_snr=True)]
MOST = 100


@functools.cache
def all_times(schedule):
    """Of all numbers of steps and spacings; each ends at the end of a row, which begins with 2."""
    rows = []
    for spacing in (*SPACINGS, *SIGMA_SPACINGS):
        for count in range(1, MOST + 1):
            times = sampling_times(schedule, count, spacing, UniPC.logsnr_min)
            assert len(times) == count + 1 and (np.diff(times) < 0).all() and times[-1] == 0
            rows.append(np.pad(times, (MOST - count, 0), constant_values=2.0))
    return np.stack(rows)


def assert_finite(samplers, schedules):
    """For all numbers of steps at once, with a network that is wrong all over the range."""
    times = np.concatenate([all_times(schedule) for schedule in schedules])
    ratios = np.concatenate([schedule.logsnr(all_times(schedule)) for schedule in schedules])
    x = jnp.asarray(np.random.default_rng(0).normal(size=(len(times), *SHAPE)), jnp.float32)
    denoise = lambda x, t: Prediction(jnp.clip(jnp.sin(9 * x / (t + 0.1)), -1, 1))  # noqa: E731

    @jax.jit
    def step(carries, left, *ends):
        def one(carries, x, *ends):
            interval = Interval(*ends, left, schedules[0])
            stepped = [
                sampler.step(carry, denoise, jnp.ones_like(x), interval)[0]
                for sampler, carry in zip(samplers, carries, strict=True)
            ]
            keep = lambda after, before: jnp.where(ends[0] > 1, before, after)  # noqa: E731
            return jax.tree.map(keep, stepped, carries)

        return jax.vmap(one)(carries, x, *ends)

    carries = jax.vmap(lambda x: [sampler.initialise(x) for sampler in samplers])(x)
    for k in range(MOST):
        ends = times[:, k], times[:, k + 1], ratios[:, k], ratios[:, k + 1]
        carries = step(carries, jnp.int32(MOST - k), *map(jnp.asarray, ends))
    finals = jax.vmap(
        lambda carries: [
            sampler.finalise(carry) for sampler, carry in zip(samplers, carries, strict=True)
        ]
    )(carries)
    for sampler, images in zip(samplers, finals, strict=True):
        assert (np.abs(images) <= 1).all(), sampler


@pytest.mark.slow
def test_no_number_of_steps_is_lost_or_gives_nan():
    samplers = [DPMpp(count, 3) for count in (FEW_STEPS - 1, FEW_STEPS)]
    samplers += [UniPC(MOST, 3), UniPC(MOST, 3, "bh1"), EulerAncestral(MOST)]
    assert_finite(samplers, SCHEDULES)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_times_between_steps_give_no_nan(schedule):
    assert_finite([DPMpp2S(MOST), Heun(1, churn=1.0)], [schedule])
