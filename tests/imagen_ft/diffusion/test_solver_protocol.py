"""A solver with a memory fits the samplers' protocol: DPM-Solver++(2M), on Gaussian data."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from imagen_ft.diffusion.samplers import DDIM, Prediction, noise_of_keys, sample
from imagen_ft.diffusion.schedule import make_schedule

SCHEDULE = make_schedule("cosine")
DEVIATION, STEPS = 0.3, 32


def scales(logsnr):
    return jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))


@dataclasses.dataclass(frozen=True)
class TwoSteps:
    """Lu et al. 2022, algorithm 2; the carry holds the last prediction and the last step."""

    num_steps: int
    spacing: str = "trailing"
    needs_learned_variance = False

    def initialise(self, x):
        return x, jnp.zeros_like(x), jnp.full((), jnp.inf)

    def step(self, carry, denoise, noise, interval):
        x_t, before, h_before = carry
        prediction = denoise(x_t, interval.t)
        h = (interval.logsnr_s - interval.logsnr_t) / 2
        share = h / (2 * h_before)
        (alpha, sigma_s), (_, sigma_t) = scales(interval.logsnr_s), scales(interval.logsnr_t)
        x0 = (1 + share) * prediction.x0 - share * before
        x_s = sigma_s / sigma_t * x_t - alpha * jnp.expm1(-h) * x0
        return (jnp.where(interval.last, prediction.x0, x_s), prediction.x0, h), prediction

    def finalise(self, carry):
        return carry[0]


def denoise(x_t, t):
    """The mean of x_0, whose values are normal, given x_t."""
    alpha, sigma = scales(SCHEDULE.logsnr(t))
    return Prediction(x_t * alpha * DEVIATION**2 / (alpha**2 * DEVIATION**2 + sigma**2))


def error(sampler):
    """The largest, relative to the solution of the probability flow."""
    noise = noise_of_keys(jax.random.split(jax.random.key(0), 2), (4, 4, 1))
    images, _ = jax.jit(lambda: sample(sampler, denoise, SCHEDULE, noise))()
    exact = DEVIATION * noise(jnp.zeros((), jnp.int32))
    return float(np.abs(images - exact).max() / np.abs(exact).max())


def test_a_memory_makes_steps_more_accurate():
    assert error(TwoSteps(STEPS)) < error(DDIM(STEPS)) / 3 < 0.1
