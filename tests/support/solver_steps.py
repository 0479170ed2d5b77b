"""Steps of a sampler, one at a time, at the caller's times."""

import jax
import jax.numpy as jnp
import numpy as np

from imagen_ft.diffusion.samplers import Interval


def intervals(schedule, times, left=0):
    """The intervals between times; `left` more steps would follow them."""
    times = jnp.asarray(times)
    ratios = schedule.logsnr(times)
    count = len(times) - 1
    return [
        Interval(*ends, jnp.int32(count - row + left), schedule)
        for row, ends in enumerate(zip(times[:-1], times[1:], ratios[:-1], ratios[1:], strict=True))
    ]


def compiled_step(sampler, denoise, schedule):
    """(carry, noise, interval) -> carry, compiled once for all steps of a schedule."""

    @jax.jit
    def step(carry, noise, numbers):
        return sampler.step(carry, denoise, noise, Interval(*numbers, schedule))[0]

    return lambda carry, noise, interval: step(carry, noise, tuple(interval[:-1]))


def solve(sampler, step, x, spans):
    """Images after these intervals, for a sampler that draws no noise."""
    carry = sampler.initialise(x)
    for interval in spans:
        carry = step(carry, jnp.zeros_like(x), interval)
    return np.asarray(sampler.finalise(carry))
