"""Which times a sampler goes through."""

import functools
import json
import math
from importlib import resources

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from imagen_ft.diffusion.schedule import Schedule
from launch.errors import InputError

SPACINGS = ("linspace", "leading", "leading_one", "trailing")
# Behind one of them: as with one step more, but without the one next to data.
OPEN = "_open"
# Of sigma / alpha, the deviation of noise on data that keep their scale.
SIGMA_SPACINGS = ("karras", "exponential")
# Beyond that there is next to no data to see (diffusers' advice for cosine schedules is lambda of
# -5.1, half of it); below that deviation next to no noise (Karras et al. 2022, table 1).
LOGSNR_MIN, _SIGMA_MIN = -10.2, 0.002
_RHO = 7.0
_LENGTH = 128


@functools.cache
def named_spacings() -> dict[str, list[int]]:
    """DeepFloyd IF's lists of steps, of 1,000, by name; from the noisiest."""
    return json.loads((resources.files("imagen_ft") / "data" / "if_timesteps.json").read_text())


def sampling_times(
    schedule: Schedule, num_steps: int, spacing: str, logsnr_min: float = -math.inf
) -> Float[np.ndarray, " {num_steps}+1"]:
    """The times that a sampler goes through, from the noisiest to 0, data; no time comes twice.

    Args:
        schedule: a discrete one gets times of its steps.
        num_steps: how many.
        spacing: 'linspace' (both ends; a single step is the noisiest), 'leading' (ends at the
            first step), 'trailing' (begins at the last one) as in Lin et al. 2024, Table 2;
            'leading_one', each a step later than that (Stable Diffusion's steps_offset of 1); one
            of these with '_open' behind it, as for one step more but without the one next to data
            (what diffusers' solvers with a memory call by the name before it);
            'karras' (Karras et al. 2022, Eq. 5, rho 7) or 'exponential', of sigma / alpha, on a
            discrete schedule the nearest steps that are still free; or one of `named_spacings`,
            whose length `num_steps` has to be.
        logsnr_min: noisier times are left out, where enough others are there; `named_spacings`
            stay as they are.

    Raises:
        InputError: no such spacing, or a number of steps that it or the schedule does not have.
    """
    total = schedule.num_train_timesteps or 1000
    if num_steps < 1:
        raise InputError(f"sampler.num_steps must be at least 1, got {num_steps}")
    if num_steps > total and schedule.num_train_timesteps:
        raise InputError(
            f"sampler.num_steps must be at most the schedule's {total} steps, got {num_steps}"
        )
    if spacing in named_spacings():
        steps: np.ndarray = np.asarray(named_spacings()[spacing], np.float64)
        if len(steps) != num_steps or total != 1000:
            raise InputError(
                f"sampler.num_steps must be {len(steps)} of 1000 for "
                f"sampler.spacing={spacing!r}, got {num_steps}"
            )
    elif spacing in SIGMA_SPACINGS:
        steps = total * _sigma_times(schedule, num_steps, spacing, logsnr_min) - 1
        if schedule.num_train_timesteps:
            steps = _distinct(np.round(steps))
    elif spacing.removesuffix(OPEN) in SPACINGS:
        is_open = spacing.endswith(OPEN)
        count = num_steps + is_open
        last = _last_step(schedule, logsnr_min)
        if schedule.num_train_timesteps:
            last = max(last, min(count, total))
        steps = _spaced(schedule, count, spacing.removesuffix(OPEN), last)[:num_steps]
        if schedule.num_train_timesteps and (steps[0] >= total or (np.diff(steps) >= 0).any()):
            raise InputError(
                f"sampler.num_steps must be below {num_steps} for sampler.spacing={spacing!r}, "
                f"which has no more of the schedule's {total} steps; take fewer, or 'trailing'"
            )
    else:
        names = ", ".join((*SPACINGS, *SIGMA_SPACINGS, *named_spacings()))
        raise InputError(
            f"sampler.spacing must be one of {names}, or one of the first {len(SPACINGS)} "
            f"with {OPEN} behind, got {spacing!r}"
        )
    return np.append((steps + 1) / total, 0.0).astype(np.float32)


def _spaced(
    schedule: Schedule, num_steps: int, spacing: str, last: float
) -> Float[np.ndarray, " {num_steps}"]:
    """The steps of one of `SPACINGS`, from the noisiest; of the first `last` ones."""
    whole = np.round if schedule.num_train_timesteps else np.asarray
    if spacing == "linspace":
        first = 0 if num_steps > 1 else last - 1
        return whole(np.linspace(first, last - 1, num_steps)[::-1])
    if spacing == "trailing":
        # Halves are rounded as in diffusers: these sums, before the 1 is taken off. Their last
        # digits can make one number too many.
        return whole(np.arange(last, 0, -last / num_steps)[:num_steps]) - 1
    ratio = last // num_steps if schedule.num_train_timesteps else last / num_steps
    return np.arange(num_steps, dtype=np.float64)[::-1] * ratio + (spacing == "leading_one")


@functools.cache
def _last_step(schedule: Schedule, logsnr_min: float) -> float:
    """The number of steps, of a continuous schedule in thousandths, that are not too noisy."""
    total = schedule.num_train_timesteps
    if _logsnr(schedule, 1.0) >= logsnr_min:
        return total or 1000
    with jax.ensure_compile_time_eval():
        if not total:
            return 1000.0 * float(schedule.time(jnp.float32(logsnr_min)))
        ratios = np.asarray(schedule.logsnr(jnp.arange(1, total + 1) / total))
    return int((ratios >= logsnr_min).sum())


def _sigma_times(
    schedule: Schedule, num_steps: int, spacing: str, logsnr_min: float
) -> Float[np.ndarray, " {num_steps}"]:
    first = 1.0 / (schedule.num_train_timesteps or 1000)
    lowest = max(_logsnr(schedule, 1.0), logsnr_min, LOGSNR_MIN)
    highest = min(_logsnr(schedule, first), -2.0 * math.log(_SIGMA_MIN))
    sigma_max, sigma_min = math.exp(-0.5 * lowest), math.exp(-0.5 * highest)
    ramp = np.linspace(0.0, 1.0, num_steps)
    if spacing == "karras":
        ends = sigma_max ** (1 / _RHO), sigma_min ** (1 / _RHO)
        log_sigmas = _RHO * np.log(ends[0] + ramp * (ends[1] - ends[0]))
    else:
        log_sigmas = -0.5 * (lowest + ramp * (highest - lowest))
    # JAX compiles for each length: most numbers of steps share one.
    padded = np.pad(-2.0 * log_sigmas, (0, -num_steps % _LENGTH), mode="edge")
    with jax.ensure_compile_time_eval():
        times = np.asarray(schedule.time(jnp.asarray(padded, jnp.float32)), np.float64)
    return times[:num_steps]


@functools.cache
def _logsnr(schedule: Schedule, t: float) -> float:
    with jax.ensure_compile_time_eval():
        return float(schedule.logsnr(jnp.float32(t)))


def _distinct(steps: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The nearest steps that fall by one or more, and leave room for those behind them."""
    order = np.arange(len(steps))
    falling = np.minimum.accumulate(steps + order) - order
    return np.maximum(falling, order[::-1])
