"""DPM-Solver++ (Lu et al. 2022): few steps, by extrapolating x_0.

In lambda = log(alpha / sigma) = logsnr / 2 the linear part of the ODE has a closed form; only x_0
must be approximated along a step.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from imagen_ft.diffusion.forward_process import Image
from imagen_ft.diffusion.samplers import Denoise, Interval, Prediction, Sampler
from imagen_ft.diffusion.schedule import Schedule, alpha_sigma
from imagen_ft.diffusion.spacing import LOGSNR_MIN
from launch.runtime.types import Array

Number = Float[Array, ""]
# With fewer steps the second-last is of order 2 at most, as the authors advise.
FEW_STEPS = 15
_TERMS = 10  # of phi's series: below float32's rounding for |z| < 0.5


class Memory(NamedTuple):
    """What a multistep solver knows about the steps it has taken."""

    predictions: tuple[Image, ...]  # of x_0, the latest first
    # Lengths of these steps in lambda, log(alpha / sigma); 1 where there was none, to divide by.
    gaps: tuple[Number, ...]
    taken: Int[Array, ""]  # how many steps there were

    @classmethod
    def empty(cls, x: Image, length: int) -> "Memory":
        """A memory of no steps, with room for `length`: a scan's carry keeps its shapes."""
        gaps = tuple(jnp.ones((), x.dtype) for _ in range(length))
        return cls((jnp.zeros_like(x),) * length, gaps, jnp.zeros((), jnp.int32))

    def after(self, x0: Image, gap: Number) -> "Memory":
        """The memory after one more step of length `gap`; the oldest is dropped."""
        length = len(self.predictions)
        predictions, gaps = (x0, *self.predictions)[:length], (gap, *self.gaps)[:length]
        return Memory(predictions, gaps, self.taken + 1)


def phi(k: int, z: Number) -> Number:
    """Functions of exponential integrators: phi_0 = exp, phi_k+1(z) = (phi_k(z) - 1 / k!) / z."""
    series, value = jnp.zeros_like(z), jnp.exp(z)
    # Horner's rule for phi_k(z) = sum over n of z^n / (n + k)!.
    for n in reversed(range(_TERMS)):
        series = series * z + 1.0 / math.factorial(n + k)
    small = jnp.abs(z) < 0.5
    # Small z by the series: the recursion subtracts close numbers. Both branches of a where are
    # computed, so the unused one must not divide by 0.
    safe = jnp.where(small, 1.0, z)
    for n in range(k):
        value = (value - 1.0 / math.factorial(n)) / safe
    return jnp.where(small, series, value)


def first_order(
    x_t: Image,
    x0: Image,
    logsnr_t: Number | Float[Array, "b 1 1 1"],
    logsnr_s: Number | Float[Array, "b 1 1 1"],
) -> Image:
    """x_s if x_0 were constant along the step: DDIM (Lu et al. 2022, Eq. 8 and 9)."""
    (_, sigma_t), (alpha_s, sigma_s) = alpha_sigma(logsnr_t), alpha_sigma(logsnr_s)
    # sigma_s / sigma_t x_t - alpha_s (exp(-h) - 1) x_0, h = lambda_s - lambda_t.
    return sigma_s / sigma_t * x_t - alpha_s * jnp.expm1(0.5 * (logsnr_t - logsnr_s)) * x0


@dataclasses.dataclass(frozen=True)
class DPMpp(Sampler):
    """Multistep DPM-Solver++, one evaluation per step (Lu et al. 2022, algorithm 2).

    The order rises over the first steps, as there is no memory yet, and falls over the last.
    """

    num_steps: int  # network evaluations
    order: int = 2  # 1 (DDIM), 2 (called 2M) or 3 (3M)
    spacing: str = "trailing"
    logsnr_min: float = LOGSNR_MIN

    def initialise(self, x: Image) -> tuple[Image, Memory]:
        """See `Sampler`."""
        return x, Memory.empty(x, self.order - 1)

    def step(
        self, carry: tuple[Image, Memory], denoise: Denoise, noise: Image, interval: Interval
    ) -> tuple[tuple[Image, Memory], Prediction]:
        """See `Sampler`."""
        x, memory = carry
        prediction = denoise(x, interval.t)
        # h in lambda, which is half of logsnr.
        x0, h = prediction.x0, 0.5 * (interval.logsnr_s - interval.logsnr_t)
        x_s = first_order(x, x0, interval.logsnr_t, interval.logsnr_s)
        for weight, difference in self._corrections(x0, h, memory, interval.step):
            x_s = x_s + alpha_sigma(interval.logsnr_s)[0] * weight * difference
        # The last step ends in the prediction itself, not at the schedule's least noise.
        x_s = jnp.where(interval.last, x0, x_s)
        return (x_s, memory.after(x0, h)), prediction

    def finalise(self, carry: tuple[Image, Memory]) -> Image:
        """See `Sampler`."""
        return carry[0]

    def _corrections(
        self, x0: Image, h: Number, memory: Memory, step: Int[Array, ""]
    ) -> list[tuple[Number, Image]]:
        """Added to a first-order step, up to the factor alpha_s: (weight, difference) pairs."""
        if self.order == 1:
            return []
        # 1. The order of this step: `memory` is empty at first, and `step` counts down to 1.
        order = jnp.minimum(self.order, memory.taken + 1)
        if self.num_steps < FEW_STEPS:
            order = jnp.minimum(order, step)
        # 2. Slope of x_0 per step, from the last prediction; r is the last gap in units of h.
        r0 = memory.gaps[0] / h
        slope = (x0 - memory.predictions[0]) / r0
        # 2M takes half of h phi_1 in place of h phi_2, which keeps the order (the midpoint form).
        second = 0.5 * h * phi(1, -h)
        if self.order == 2:
            return [(jnp.where(order == 2, second, 0.0), slope)]
        # 3. Curvature, from the prediction before that.
        r1 = memory.gaps[1] / h
        before = (memory.predictions[0] - memory.predictions[1]) / r1
        # The first and second derivative of a parabola through three predictions, integrated.
        third, bend = h * phi(2, -h), 2.0 * h * phi(3, -h)
        along = jnp.where(order == 3, third, jnp.where(order == 2, second, 0.0))
        across = jnp.where(order == 3, (third * r0 + bend) / (r0 + r1), 0.0)
        return [(along, slope), (across, slope - before)]


@dataclasses.dataclass(frozen=True)
class DPMpp2S(Sampler):
    """Single-step DPM-Solver++ of second order (Lu et al. 2022, algorithm 1).

    Each step first goes to its middle in lambda, on a discrete schedule to the nearest step that is
    not t itself; the last step, to data, is of first order.
    """

    # Two network evaluations each, except the last.
    num_steps: int
    spacing: str = "trailing"
    logsnr_min: float = LOGSNR_MIN

    def evaluation_times(self, schedule: Schedule) -> Float[np.ndarray, " evaluations"]:
        """See `Sampler`."""
        times = self.times(schedule)
        # May be asked for inside jit: the middles must be numbers, not tracers.
        with jax.ensure_compile_time_eval():
            ratios = schedule.logsnr(jnp.asarray(times[:-1]))
            middles = _middle(schedule, jnp.asarray(times[:-2]), ratios[:-1], ratios[1:])
        return np.append(times[:-1], np.asarray(middles))

    def step(
        self, carry: Image, denoise: Denoise, noise: Image, interval: Interval
    ) -> tuple[Image, Prediction]:
        """See `Sampler`."""
        prediction = denoise(carry, interval.t)
        x0, logsnr_t, logsnr_s = prediction.x0, interval.logsnr_t, interval.logsnr_s

        def second_order() -> Image:
            # share is r of the paper: where the middle is within the step, about a half.
            middle = _middle(interval.schedule, interval.t, logsnr_t, logsnr_s)
            logsnr = interval.schedule.logsnr(middle)
            share = (logsnr - logsnr_t) / (logsnr_s - logsnr_t)
            there = denoise(first_order(carry, x0, logsnr_t, logsnr), middle).x0
            # x_0 extrapolated from the middle: (1 - 1/2r) x_0(t) + 1/2r x_0(middle).
            return first_order(carry, x0 + 0.5 / share * (there - x0), logsnr_t, logsnr_s)

        return jax.lax.cond(interval.last, lambda: x0, second_order), prediction


def _middle(
    schedule: Schedule,
    t: Float[Array, "*b"],
    logsnr_t: Float[Array, "*b"],
    logsnr_s: Float[Array, "*b"],
) -> Float[Array, "*b"]:
    """The time at which lambda is the mean of two others."""
    middle = schedule.time(0.5 * (logsnr_t + logsnr_s))
    if schedule.num_train_timesteps:
        # Between neighbouring steps there is none: s stands in, never t itself.
        middle = jnp.minimum(middle, t - 1.0 / schedule.num_train_timesteps)
    return middle
