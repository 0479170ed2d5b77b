"""Noise schedules of variance-preserving diffusion: log signal-to-noise ratio by time."""

import dataclasses
import functools
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from launch.errors import InputError
from launch.fields import Fields
from launch.runtime.types import Array


@runtime_checkable
class Schedule(Protocol):
    """`t` in [0, 1]: 0 is data, 1 is noise.

    Attributes:
        num_train_timesteps: steps of a discrete schedule, of which step k is t = (k + 1) / steps;
            0 where time is continuous.
    """

    num_train_timesteps: int

    def logsnr(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """log(alpha^2 / sigma^2), decreasing in t."""

    def time(self, logsnr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """The t of a ratio: the inverse of `logsnr`; of a discrete schedule the nearest step's."""

    def model_time(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """`t` in the units that the network was trained with."""


@dataclasses.dataclass(frozen=True)
class Cosine:
    """alpha = cos(pi t / 2), with t squeezed so that logsnr stays in its bounds.

    Nichol and Dhariwal 2021, Eq. 17, in continuous time as in Imagen.
    """

    logsnr_min: float = -20.0
    logsnr_max: float = 20.0
    num_train_timesteps: int = dataclasses.field(default=0, init=False)

    def logsnr(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """See `Schedule`."""
        first, last = _angle(self.logsnr_max), _angle(self.logsnr_min)
        return -2.0 * jnp.log(jnp.tan(first + t * (last - first)))

    def time(self, logsnr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """See `Schedule`."""
        first, last = _angle(self.logsnr_max), _angle(self.logsnr_min)
        return jnp.clip((_angle(logsnr) - first) / (last - first), 0.0, 1.0)

    def model_time(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """See `Schedule`."""
        return 1000.0 * t


def _angle(logsnr: float | Float[Array, "*b"]) -> Float[Array, "*b"]:
    return jnp.arctan(jnp.exp(-0.5 * logsnr))


@dataclasses.dataclass(frozen=True)
class Linear:
    """beta rising linearly over 1,000 steps, in continuous time (Ho et al. 2020).

    log abar(t) is the integral of -beta, 1,000 times from `beta_first` to `beta_last`.
    """

    beta_first: float = 1e-4
    beta_last: float = 0.02
    num_train_timesteps: int = dataclasses.field(default=0, init=False)

    def logsnr(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """See `Schedule`."""
        slope = self.beta_last - self.beta_first
        # A first thousandth keeps the ratio finite at t = 0, as a first discrete step would.
        log_abar = -1000.0 * (self.beta_first * t + 0.5 * slope * t * t) - self.beta_first
        return log_abar - jnp.log(-jnp.expm1(log_abar))

    def time(self, logsnr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """See `Schedule`."""
        slope = self.beta_last - self.beta_first
        area = jnp.maximum(-jax.nn.log_sigmoid(logsnr) - self.beta_first, 0.0) / 1000.0
        # The root of a quadratic, without a difference of close numbers.
        root = jnp.sqrt(self.beta_first**2 + 2.0 * slope * area)
        return jnp.clip(2.0 * area / (self.beta_first + root), 0.0, 1.0)

    def model_time(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """See `Schedule`."""
        return 1000.0 * t


@dataclasses.dataclass(frozen=True)
class SquaredCos:
    """The discrete cosine schedule of DeepFloyd IF (Nichol and Dhariwal 2021, Eq. 17).

    beta_k is at most 0.999; t is rounded to a step, and below half a step to data without noise.
    """

    num_train_timesteps: int = 1000

    def logsnr(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """See `Schedule`."""
        return jnp.asarray(_squared_cos_logsnr(self.num_train_timesteps))[self._row(t)]

    def time(self, logsnr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """See `Schedule`; never that of data."""
        ratios = _squared_cos_logsnr(self.num_train_timesteps)[1:]
        between = 0.5 * (ratios[1:] + ratios[:-1])
        row = 1 + jnp.searchsorted(-between, -jnp.asarray(logsnr))
        return row / self.num_train_timesteps

    def model_time(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """See `Schedule`; for IF's weights 0 to 999."""
        return jnp.maximum(self._row(t) - 1, 0).astype(jnp.float32)

    def _row(self, t: Float[Array, "*b"]) -> Array:
        return jnp.round(jnp.asarray(t) * self.num_train_timesteps).astype(jnp.int32)


@functools.cache
def _squared_cos_logsnr(steps: int) -> np.ndarray:
    """Row k + 1 is step k; row 0 is data, whose noise is less than float32 can tell from none."""
    angle = (np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2
    betas = np.minimum(1.0 - np.cos(angle[1:]) ** 2 / np.cos(angle[:-1]) ** 2, 0.999)
    # Rounded as in diffusers, with which the public weights are used.
    alphas = np.float32(1.0) - betas.astype(np.float32)
    log_abar = np.cumsum(np.log(alphas.astype(np.float64)))
    logsnr = log_abar - np.log(-np.expm1(log_abar))
    return np.concatenate([[100.0], logsnr]).astype(np.float32)


SCHEDULES = {"cosine": Cosine, "linear": Linear, "squaredcos_cap_v2": SquaredCos}


def make_schedule(config: str | Fields) -> Schedule:
    """Builds a schedule.

    Args:
        config: its name, one of `SCHEDULES`; or a dict of `name` and the numbers that differ from
            the defaults of its class.

    Raises:
        InputError: no such name or number, or one out of its range.
    """
    numbers: dict[str, Any] = {"name": config} if isinstance(config, str) else dict(config)
    name = numbers.pop("name", None)
    if name not in SCHEDULES:
        raise InputError(f"schedule {name!r}: known are {', '.join(SCHEDULES)}")
    names = [field.name for field in dataclasses.fields(SCHEDULES[name]) if field.init]
    if unknown := sorted(set(numbers) - set(names)):
        raise InputError(f"schedule.{unknown[0]}: {name!r} has no such number, but {names}")
    for field, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise InputError(f"schedule.{field}={number!r}: a number is needed")
    if (steps := numbers.get("num_train_timesteps", 1)) < 1:
        raise InputError(f"schedule.num_train_timesteps={steps}: at least 1 is needed")
    schedule = SCHEDULES[name](**numbers)
    if numbers:
        ratios = np.asarray(schedule.logsnr(jnp.asarray([0.0, 0.5, 1.0])))
        if not np.isfinite(ratios).all() or not (np.diff(ratios) < 0).all():
            raise InputError(f"schedule={name}, {numbers}: logsnr must be finite and fall with t")
    return schedule


def alpha_sigma(logsnr: Float[Array, "*b"]) -> tuple[Float[Array, "*b"], Float[Array, "*b"]]:
    """Scales of data and noise; their squares sum to one."""
    return jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))
