"""Euler's and Heun's steps with churn (Karras et al. 2022, algorithm 2).

Karras' equations hold for data at constant scale, x = x_t / alpha, where the noise has the standard
deviation sigma / alpha; `_alpha` and `_sigma` convert.
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
# gamma_i <= sqrt(2) - 1: no step adds more noise than doubles the variance (algorithm 2).
_MOST_CHURN = math.sqrt(2.0) - 1.0


@dataclasses.dataclass(frozen=True)
class Euler(Sampler):
    """Euler's steps; without churn the same as DDIM's."""

    num_steps: int  # network evaluations
    # S_churn, S_tmin, S_tmax and S_noise of algorithm 2: noise added before the steps, summed over
    # all of them; the range of sigma / alpha in which it is added; its standard deviation.
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
        # 1. Raise the noise from sigma_i to sigma_hat (algorithm 2).
        x, t, sigma = self._churned(carry, noise, interval)
        # 2. Ask the network, which expects variance-preserving x_t.
        prediction = denoise(x * _alpha(interval.schedule.logsnr(t)), t)
        # 3. Step down to s.
        x_s = self._update(x, prediction.x0, sigma, denoise, interval)
        return jnp.where(interval.last, prediction.x0, x_s), prediction

    def _churned(
        self, x_t: Image, noise: Image, interval: Interval
    ) -> tuple[Image, Number, Number]:
        """Images at constant scale with more noise, their time, and the noise's deviation.

        On a discrete schedule the noise is raised to that of the nearest step.
        """
        schedule, sigma = interval.schedule, _sigma(interval.logsnr_t)
        # gamma_i = min(S_churn / N, sqrt(2) - 1) within [S_tmin, S_tmax], else 0.
        churn = jnp.minimum(self.churn / self.num_steps, _MOST_CHURN)
        churn = jnp.where((sigma >= self.churn_min) & (sigma <= self.churn_max), churn, 0.0)
        # sigma_hat = sigma (1 + gamma) is logsnr - 2 log(1 + gamma). A discrete schedule may round
        # it to less noise than there is: never go below t.
        later = schedule.time(interval.logsnr_t - 2.0 * jnp.log1p(churn))
        later = jnp.where(churn > 0, jnp.maximum(later, interval.t), interval.t)
        gap = jnp.where(churn > 0, jnp.maximum(_sigma(schedule.logsnr(later)) - sigma, 0.0), 0.0)
        sigma_later = sigma + gap
        # Added noise: S_noise sqrt(sigma_hat^2 - sigma^2), factored to keep its digits.
        added = self.churn_noise * jnp.sqrt(gap * (sigma_later + sigma))
        return x_t / _alpha(interval.logsnr_t) + added * noise, later, sigma_later

    def _update(
        self, x: Image, x0: Image, sigma: Number, denoise: Denoise, interval: Interval
    ) -> Image:
        # x_s = x_0 + sigma_s / sigma (x - x_0), an Euler step of dx / dsigma = (x - x_0) / sigma.
        return _alpha(interval.logsnr_s) * (x0 + _sigma(interval.logsnr_s) / sigma * (x - x0))


@dataclasses.dataclass(frozen=True)
class Heun(Euler):
    """Heun's steps: two network evaluations each, except the last, which is Euler's."""

    def evaluation_times(self, schedule: Schedule) -> Float[np.ndarray, " evaluations"]:
        """See `Sampler`."""
        # Every step evaluates at its start, all but the last also at its end.
        times = self.times(schedule)
        return np.append(times[:-1], times[1:-1])

    def _update(
        self, x: Image, x0: Image, sigma: Number, denoise: Denoise, interval: Interval
    ) -> Image:
        def second_order() -> Image:
            sigma_s = _sigma(interval.logsnr_s)
            slope = (x - x0) / sigma
            # Euler's step to s, then the slope there (Karras et al. 2022, algorithm 2).
            euler = x + (sigma_s - sigma) * slope
            there = denoise(_alpha(interval.logsnr_s) * euler, interval.s).x0
            slope_there = (euler - there) / sigma_s
            # Trapezoid: the mean of both slopes.
            x_s = x + 0.5 * (sigma_s - sigma) * (slope + slope_there)
            return _alpha(interval.logsnr_s) * x_s

        # At data the slope would divide by no noise. cond, not where: it skips that evaluation.
        return jax.lax.cond(interval.last, lambda: x0, second_order)


def _alpha(logsnr: Number) -> Number:
    return alpha_sigma(logsnr)[0]


def _sigma(logsnr: Number) -> Number:
    return jnp.exp(-0.5 * logsnr)
