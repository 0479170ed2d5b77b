"""DPM-Solver++ (Lu et al. 2022): few steps, with the noise in closed form and x_0 extrapolated."""

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
# With fewer steps the last but one is of second order at most, as in the authors' advice.
FEW_STEPS = 15
_TERMS = 10


class Memory(NamedTuple):
    """What a multistep solver knows of the steps behind it.

    Attributes:
        predictions: of x_0, the latest first.
        gaps: in lambda, log(alpha / sigma), of these steps; 1 where there was none.
        taken: how many steps there were.
    """

    predictions: tuple[Image, ...]
    gaps: tuple[Number, ...]
    taken: Int[Array, ""]

    @classmethod
    def empty(cls, x: Image, length: int) -> "Memory":
        """Of no steps, with room for some."""
        gaps = tuple(jnp.ones((), x.dtype) for _ in range(length))
        return cls((jnp.zeros_like(x),) * length, gaps, jnp.zeros((), jnp.int32))

    def after(self, x0: Image, gap: Number) -> "Memory":
        """One step later."""
        length = len(self.predictions)
        predictions, gaps = (x0, *self.predictions)[:length], (gap, *self.gaps)[:length]
        return Memory(predictions, gaps, self.taken + 1)


def phi(k: int, z: Number) -> Number:
    """The functions of exponential integrators: phi_0 = exp, phi_k+1 = (phi_k - 1 / k!) / z.

    For small z, where that is a difference of close numbers, by their series.
    """
    series, value = jnp.zeros_like(z), jnp.exp(z)
    for n in reversed(range(_TERMS)):
        series = series * z + 1.0 / math.factorial(n + k)
    small = jnp.abs(z) < 0.5
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
    """x_s where x_0 does not change on the way (Lu et al. 2022, Eq. 8 and 9): a step of DDIM."""
    (_, sigma_t), (alpha_s, sigma_s) = alpha_sigma(logsnr_t), alpha_sigma(logsnr_s)
    return sigma_s / sigma_t * x_t - alpha_s * jnp.expm1(0.5 * (logsnr_t - logsnr_s)) * x0


@dataclasses.dataclass(frozen=True)
class DPMpp(Sampler):
    """DPM-Solver++ with a memory: one evaluation a step (Lu et al. 2022, algorithm 2).

    Orders rise over the first steps and fall over the last ones.

    Attributes:
        num_steps: network evaluations.
        order: 1 (DDIM), 2 (called 2M) or 3 (3M).
        spacing: see `spacing.sampling_times`.
        logsnr_min: see `Sampler`.
    """

    num_steps: int
    order: int = 2
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
        x0, h = prediction.x0, 0.5 * (interval.logsnr_s - interval.logsnr_t)
        x_s = first_order(x, x0, interval.logsnr_t, interval.logsnr_s)
        for weight, difference in self._corrections(x0, h, memory, interval.step):
            x_s = x_s + alpha_sigma(interval.logsnr_s)[0] * weight * difference
        x_s = jnp.where(interval.last, x0, x_s)
        return (x_s, memory.after(x0, h)), prediction

    def finalise(self, carry: tuple[Image, Memory]) -> Image:
        """See `Sampler`."""
        return carry[0]

    def _corrections(
        self, x0: Image, h: Number, memory: Memory, step: Int[Array, ""]
    ) -> list[tuple[Number, Image]]:
        """What is added to a first-order step, but for alpha: weights, and differences of x_0."""
        if self.order == 1:
            return []
        order = jnp.minimum(self.order, memory.taken + 1)
        if self.num_steps < FEW_STEPS:
            order = jnp.minimum(order, step)
        r0 = memory.gaps[0] / h
        slope = (x0 - memory.predictions[0]) / r0
        second = 0.5 * h * phi(1, -h)
        if self.order == 2:
            return [(jnp.where(order == 2, second, 0.0), slope)]
        r1 = memory.gaps[1] / h
        before = (memory.predictions[0] - memory.predictions[1]) / r1
        # The derivatives of x_0 by a parabola through three predictions.
        third, bend = h * phi(2, -h), 2.0 * h * phi(3, -h)
        along = jnp.where(order == 3, third, jnp.where(order == 2, second, 0.0))
        across = jnp.where(order == 3, (third * r0 + bend) / (r0 + r1), 0.0)
        return [(along, slope), (across, slope - before)]


@dataclasses.dataclass(frozen=True)
class DPMpp2S(Sampler):
    """DPM-Solver++ of second order without a memory (Lu et al. 2022, algorithm 1).

    A step goes to the middle (of lambda) first; the last step, to data, is of first order. On a
    discrete schedule the middle is the nearest step before t.

    Attributes:
        num_steps: steps, of two network evaluations each but for the last one.
        spacing: see `spacing.sampling_times`.
        logsnr_min: see `Sampler`.
    """

    num_steps: int
    spacing: str = "trailing"
    logsnr_min: float = LOGSNR_MIN

    def evaluation_times(self, schedule: Schedule) -> Float[np.ndarray, " evaluations"]:
        """See `Sampler`."""
        times = self.times(schedule)
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
            middle = _middle(interval.schedule, interval.t, logsnr_t, logsnr_s)
            logsnr = interval.schedule.logsnr(middle)
            share = (logsnr - logsnr_t) / (logsnr_s - logsnr_t)
            there = denoise(first_order(carry, x0, logsnr_t, logsnr), middle).x0
            return first_order(carry, x0 + 0.5 / share * (there - x0), logsnr_t, logsnr_s)

        return jax.lax.cond(interval.last, lambda: x0, second_order), prediction


def _middle(
    schedule: Schedule,
    t: Float[Array, "*b"],
    logsnr_t: Float[Array, "*b"],
    logsnr_s: Float[Array, "*b"],
) -> Float[Array, "*b"]:
    """The time between two whose lambda is their mean."""
    middle = schedule.time(0.5 * (logsnr_t + logsnr_s))
    if schedule.num_train_timesteps:
        # Of neighbours the middle is the later one.
        middle = jnp.minimum(middle, t - 1.0 / schedule.num_train_timesteps)
    return middle
