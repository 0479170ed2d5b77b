"""Euler's and Heun's steps of Karras et al. 2022, algorithm 2, with churn.

They are for data of constant scale, x = x_t / alpha, with noise of deviation sigma / alpha.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from imagen_ft.diffusion.forward_process import Image
from imagen_ft.diffusion.samplers import Denoise, Interval, Prediction, Sampler
from imagen_ft.diffusion.schedule import Schedule, alpha_sigma
from imagen_ft.diffusion.spacing import LOGSNR_MIN
from launch.runtime.types import Array

Number = Float[Array, ""]
_MOST_CHURN = math.sqrt(2.0) - 1.0


@dataclasses.dataclass(frozen=True)
class Euler(Sampler):
    """Euler's steps; without churn those of DDIM.

    Attributes:
        num_steps: network evaluations.
        churn: S_churn: how much noise is added before the steps, over all of them.
        churn_min: S_tmin: of sigma / alpha; below it none is added.
        churn_max: S_tmax: above it none is added.
        churn_noise: S_noise: the deviation of what is added.
        spacing: see `spacing.sampling_times`.
        logsnr_min: see `Sampler`.
    """

    num_steps: int
    churn: float | Float[Array, ""] = 0.0
    churn_min: float | Float[Array, ""] = 0.0
    churn_max: float | Float[Array, ""] = math.inf
    churn_noise: float | Float[Array, ""] = 1.0
    spacing: str = "karras"
    logsnr_min: float = LOGSNR_MIN

    def step(
        self, carry: Image, denoise: Denoise, noise: Image, interval: Interval
    ) -> tuple[Image, Prediction]:
        """See `Sampler`."""
        x, t, sigma = self._churned(carry, noise, interval)
        prediction = denoise(x * _alpha(interval.schedule.logsnr(t)), t)
        x_s = self._update(x, prediction.x0, sigma, denoise, interval)
        return jnp.where(interval.last, prediction.x0, x_s), prediction

    def _churned(
        self, x_t: Image, noise: Image, interval: Interval
    ) -> tuple[Image, Number, Number]:
        """Images of constant scale with more noise, their time, and the deviation of their noise.

        On a discrete schedule the noise comes to that of the nearest step.
        """
        schedule, sigma = interval.schedule, _sigma(interval.logsnr_t)
        churn = jnp.minimum(self.churn / self.num_steps, _MOST_CHURN)
        churn = jnp.where((sigma >= self.churn_min) & (sigma <= self.churn_max), churn, 0.0)
        later = schedule.time(interval.logsnr_t - 2.0 * jnp.log1p(churn))
        later = jnp.where(churn > 0, jnp.maximum(later, interval.t), interval.t)
        gap = jnp.where(churn > 0, jnp.maximum(_sigma(schedule.logsnr(later)) - sigma, 0.0), 0.0)
        sigma_later = sigma + gap
        added = self.churn_noise * jnp.sqrt(gap * (sigma_later + sigma))
        return x_t / _alpha(interval.logsnr_t) + added * noise, later, sigma_later

    def _update(
        self, x: Image, x0: Image, sigma: Number, denoise: Denoise, interval: Interval
    ) -> Image:
        """x_s, from images of constant scale and what is predicted of them."""
        return _alpha(interval.logsnr_s) * (x0 + _sigma(interval.logsnr_s) / sigma * (x - x0))


@dataclasses.dataclass(frozen=True)
class Heun(Euler):
    """Heun's steps: two network evaluations each, but for the last one, which is Euler's."""

    def evaluation_times(self, schedule: Schedule) -> Float[np.ndarray, " evaluations"]:
        """See `Sampler`."""
        times = self.times(schedule)
        return np.append(times[:-1], times[1:-1])

    def _update(
        self, x: Image, x0: Image, sigma: Number, denoise: Denoise, interval: Interval
    ) -> Image:
        """See `Euler`."""

        def second_order() -> Image:
            sigma_s = _sigma(interval.logsnr_s)
            slope = (x - x0) / sigma
            euler = x + (sigma_s - sigma) * slope
            there = denoise(_alpha(interval.logsnr_s) * euler, interval.s).x0
            slope_there = (euler - there) / sigma_s
            x_s = x + 0.5 * (sigma_s - sigma) * (slope + slope_there)
            return _alpha(interval.logsnr_s) * x_s

        return jax.lax.cond(interval.last, lambda: x0, second_order)


def _alpha(logsnr: Number) -> Number:
    return alpha_sigma(logsnr)[0]


def _sigma(logsnr: Number) -> Number:
    return jnp.exp(-0.5 * logsnr)
