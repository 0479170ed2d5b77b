"""Which times a sampler visits."""

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
# Suffix: the times for one step more, without the one next to data.
OPEN = "_open"
# Spacings in sigma / alpha, the standard deviation of noise on data at constant scale.
SIGMA_SPACINGS = ("karras", "exponential")
# Noisier than this logsnr there is almost no data to see (diffusers advises lambda = -5.1, half of
# it, for cosine schedules); below this sigma almost no noise (Karras et al. 2022, table 1).
LOGSNR_MIN, _SIGMA_MIN = -10.2, 0.002
_RHO = 7.0
_LENGTH = 128


@functools.cache
def named_spacings() -> dict[str, list[int]]:
    """DeepFloyd IF's lists of steps (such as 'smart50'), out of 1,000, from the noisiest."""
    return json.loads((resources.files("imagen_ft") / "data" / "if_timesteps.json").read_text())


def sampling_times(
    schedule: Schedule, num_steps: int, spacing: str, logsnr_min: float = -math.inf
) -> Float[np.ndarray, " {num_steps}+1"]:
    """The times from the noisiest to 0 (data), strictly falling.

    On a discrete schedule they are times of its steps. `spacing` is one of

    - 'linspace' (both ends; a single step is the noisiest), 'leading' (ends at the first step),
      'trailing' (starts at the last) as in Lin et al. 2024, Table 2;
    - 'leading_one', each one step later than 'leading' (Stable Diffusion's steps_offset of 1);
    - one of these with '_open' appended: as for one step more, without the one next to data (what
      diffusers' multistep solvers do under the plain name);
    - 'karras' (Karras et al. 2022, Eq. 5, rho 7) or 'exponential', in sigma / alpha; on a discrete
      schedule the nearest steps still free;
    - one of `named_spacings`, whose length `num_steps` must equal.

    Times noisier than `logsnr_min` are left out where enough others remain; `named_spacings` ignore
    it.

    Raises:
        InputError: an unknown spacing, or a number of steps that it or the schedule does not have.
    """
    # Steps below count from 0 at the cleanest, as in diffusers; step k is t = (k + 1) / total.
    # Continuous schedules count in thousandths.
    total = schedule.num_train_timesteps or 1000
    if num_steps < 1:
        raise InputError(f"sampler.num_steps must be at least 1, got {num_steps}")
    if num_steps > total and schedule.num_train_timesteps:
        raise InputError(
            f"sampler.num_steps must be at most the schedule's {total} steps, got {num_steps}"
        )
    if spacing in named_spacings():
        # 1. IF's own lists.
        steps: np.ndarray = np.asarray(named_spacings()[spacing], np.float64)
        if len(steps) != num_steps or total != 1000:
            raise InputError(
                f"sampler.num_steps must be {len(steps)}, of a schedule of 1000 steps, for "
                f"sampler.spacing={spacing!r}, got {num_steps} of {total}"
            )
    elif spacing in SIGMA_SPACINGS:
        # 2. Spaced in sigma; rounding can give two neighbours the same step.
        steps = total * _sigma_times(schedule, num_steps, spacing, logsnr_min) - 1
        if schedule.num_train_timesteps:
            steps = _distinct(np.round(steps))
    elif spacing.removesuffix(OPEN) in SPACINGS:
        # 3. Spaced in steps.
        is_open = spacing.endswith(OPEN)
        count = num_steps + is_open
        last = _last_step(schedule, logsnr_min)
        if schedule.num_train_timesteps:
            # Leaving out noisy times must not leave fewer steps than asked for.
            last = max(last, min(count, total))
        steps = _spaced(schedule, count, spacing.removesuffix(OPEN), last)[:num_steps]
        if schedule.num_train_timesteps and (steps[0] >= total or (np.diff(steps) >= 0).any()):
            raise InputError(
                f"sampler.num_steps must be below {num_steps} for sampler.spacing={spacing!r}, as "
                f"the schedule has only {total} steps; use fewer, or 'trailing'"
            )
    else:
        names = ", ".join((*SPACINGS, *SIGMA_SPACINGS, *named_spacings()))
        raise InputError(
            f"sampler.spacing must be one of {names}, or one of the first {len(SPACINGS)} with "
            f"{OPEN} appended, got {spacing!r}"
        )
    # To times, with data at the end.
    return np.append((steps + 1) / total, 0.0).astype(np.float32)


def _spaced(
    schedule: Schedule, num_steps: int, spacing: str, last: float
) -> Float[np.ndarray, " {num_steps}"]:
    """Steps of one of `SPACINGS` among the first `last`, from the noisiest."""
    whole = np.round if schedule.num_train_timesteps else np.asarray
    if spacing == "linspace":
        first = 0 if num_steps > 1 else last - 1
        return whole(np.linspace(first, last - 1, num_steps)[::-1])
    if spacing == "trailing":
        # Bit for bit as diffusers computes them: the sums are rounded before 1 is subtracted, and
        # float error in arange can yield one number too many.
        return whole(np.arange(last, 0, -last / num_steps)[:num_steps]) - 1
    # 'leading': multiples of a whole ratio, counted from 0 (or 1).
    ratio = last // num_steps if schedule.num_train_timesteps else last / num_steps
    return np.arange(num_steps, dtype=np.float64)[::-1] * ratio + (spacing == "leading_one")


@functools.cache
def _last_step(schedule: Schedule, logsnr_min: float) -> float:
    """How many steps (thousandths, where time is continuous) are not noisier than `logsnr_min`."""
    total = schedule.num_train_timesteps
    if _logsnr(schedule, 1.0) >= logsnr_min:
        return total or 1000
    # This may run inside a jitted sampler: without it the result would be a tracer.
    with jax.ensure_compile_time_eval():
        if not total:
            return 1000.0 * float(schedule.time(jnp.float32(logsnr_min)))
        ratios = np.asarray(schedule.logsnr(jnp.arange(1, total + 1) / total))
    return int((ratios >= logsnr_min).sum())


def _sigma_times(
    schedule: Schedule, num_steps: int, spacing: str, logsnr_min: float
) -> Float[np.ndarray, " {num_steps}"]:
    # 1. The ends, as logsnr: within the schedule, not too noisy, not too clean.
    first = 1.0 / (schedule.num_train_timesteps or 1000)
    lowest = max(_logsnr(schedule, 1.0), logsnr_min, LOGSNR_MIN)
    highest = min(_logsnr(schedule, first), -2.0 * math.log(_SIGMA_MIN))
    sigma_max, sigma_min = math.exp(-0.5 * lowest), math.exp(-0.5 * highest)
    # 2. The levels between them.
    ramp = np.linspace(0.0, 1.0, num_steps)
    if spacing == "karras":
        # sigma_i = (max^(1/rho) + i / (N-1) (min^(1/rho) - max^(1/rho)))^rho (Karras et al. 2022,
        # Eq. 5).
        ends = sigma_max ** (1 / _RHO), sigma_min ** (1 / _RHO)
        log_sigmas = _RHO * np.log(ends[0] + ramp * (ends[1] - ends[0]))
    else:
        log_sigmas = -0.5 * (lowest + ramp * (highest - lowest))
    # 3. Back to times. JAX compiles once per length: padded to multiples of 128, most numbers of
    # steps share a program.
    padded = np.pad(-2.0 * log_sigmas, (0, -num_steps % _LENGTH), mode="edge")
    with jax.ensure_compile_time_eval():
        times = np.asarray(schedule.time(jnp.asarray(padded, jnp.float32)), np.float64)
    return times[:num_steps]


@functools.cache
def _logsnr(schedule: Schedule, t: float) -> float:
    with jax.ensure_compile_time_eval():
        return float(schedule.logsnr(jnp.float32(t)))


def _distinct(steps: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The nearest steps that fall by at least one and leave room for those after them."""
    # Adding the position turns "falls by at least one" into "does not rise".
    order = np.arange(len(steps))
    falling = np.minimum.accumulate(steps + order) - order
    # The last step is at least 0, the one before it 1, and so on.
    return np.maximum(falling, order[::-1])
