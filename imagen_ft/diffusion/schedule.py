"""Noise schedules of variance-preserving diffusion: log signal-to-noise ratio by time."""

import abc
import dataclasses
import functools
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from launch.errors import InputError
from launch.fields import Fields
from launch.runtime.limits import check_numbers
from launch.runtime.types import Array

_MOST_STEPS = 10**6
# A scale of data that float32 cannot tell from none, and whose logarithm is finite.
_NO_DATA = 1e-9


@runtime_checkable
class Schedule(Protocol):
    """`t` in [0, 1]: 0 is data, 1 is noise.

    Attributes:
        num_train_timesteps: steps of a discrete schedule, of which step k is t = (k + 1) / steps;
            0 where time is continuous.
    """

    num_train_timesteps: int

    def __hash__(self) -> int:
        """Schedules are frozen."""

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
class Discrete(abc.ABC):
    """A table of steps: t is rounded to one, and below half a step to data without noise."""

    num_train_timesteps: int = 1000

    @property
    @abc.abstractmethod
    def ratios(self) -> Float[np.ndarray, " {self.num_train_timesteps}+1"]:
        """The log ratio by row: k + 1 is step k, 0 is data."""

    def logsnr(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """See `Schedule`."""
        return jnp.asarray(self.ratios)[self._row(t)]

    def time(self, logsnr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """See `Schedule`; never that of data."""
        ratios = self.ratios[1:]
        between = 0.5 * (ratios[1:] + ratios[:-1])
        row = 1 + jnp.searchsorted(-between, -jnp.asarray(logsnr))
        return row / self.num_train_timesteps

    def model_time(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """See `Schedule`; for the public weights 0 to 999."""
        return jnp.maximum(self._row(t) - 1, 0).astype(jnp.float32)

    def _row(self, t: Float[Array, "*b"]) -> Array:
        return jnp.round(jnp.asarray(t) * self.num_train_timesteps).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class SquaredCos(Discrete):
    """The discrete cosine schedule of DeepFloyd IF (Nichol and Dhariwal 2021, Eq. 17).

    beta_k is at most 0.999.
    """

    @property
    def ratios(self) -> Float[np.ndarray, " {self.num_train_timesteps}+1"]:
        """See `Discrete`."""
        return _squared_cos_ratios(self.num_train_timesteps)


@dataclasses.dataclass(frozen=True)
class ScaledLinear(Discrete):
    """sqrt(beta) rising linearly (Rombach et al. 2022): Stable Diffusion's schedule.

    Attributes:
        beta_first: beta of the first step.
        beta_last: beta of the last one.
        zero_terminal_snr: the last step holds no data (Lin et al. 2024, Algorithm 1), for which
            the network has to predict something else than eps.
    """

    beta_first: float = 0.00085
    beta_last: float = 0.012
    zero_terminal_snr: bool = False

    @property
    def ratios(self) -> Float[np.ndarray, " {self.num_train_timesteps}+1"]:
        """See `Discrete`."""
        return _scaled_linear_ratios(*dataclasses.astuple(self))


@functools.cache
def _squared_cos_ratios(steps: int) -> np.ndarray:
    angle = (np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2
    betas = np.minimum(1.0 - np.cos(angle[1:]) ** 2 / np.cos(angle[:-1]) ** 2, 0.999)
    return _with_data(np.log(_alphas(betas)).cumsum())


@functools.cache
@np.errstate(divide="ignore", invalid="ignore")  # `make_schedule` looks at what comes of it
def _scaled_linear_ratios(steps: int, first: float, last: float, zero_snr: bool) -> np.ndarray:
    betas = np.linspace(np.sqrt(first), np.sqrt(last), steps) ** 2
    log_abar = np.log(_alphas(betas)).cumsum()
    if zero_snr:
        scale = np.exp(0.5 * log_abar)
        scale = (scale - scale[-1]) * scale[0] / (scale[0] - scale[-1])
        log_abar = 2 * np.log(np.maximum(scale, _NO_DATA))
    return _with_data(log_abar)


def _alphas(betas: np.ndarray) -> np.ndarray:
    # Rounded as in diffusers, with which the public weights are used.
    return (np.float32(1.0) - betas.astype(np.float32)).astype(np.float64)


def _with_data(log_abar: np.ndarray) -> np.ndarray:
    """Before the steps, data: its noise is less than float32 can tell from none."""
    logsnr = log_abar - np.log(-np.expm1(log_abar))
    return np.concatenate([[100.0], logsnr]).astype(np.float32)


SCHEDULES = {
    "cosine": Cosine,
    "linear": Linear,
    "scaled_linear": ScaledLinear,
    "squaredcos_cap_v2": SquaredCos,
}


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
    if name not in tuple(SCHEDULES):  # a list cannot be looked up in a dict
        raise InputError(f"schedule must be one of {', '.join(SCHEDULES)}, got {name!r}")
    names = [field.name for field in dataclasses.fields(SCHEDULES[name]) if field.init]
    if unknown := sorted(set(numbers) - set(names)):
        raise InputError(f"schedule.{unknown[0]} is not a field of {name!r}; use {names}")
    for field, number in numbers.items():
        is_switch = isinstance(getattr(SCHEDULES[name], field), bool)
        if isinstance(number, bool) != is_switch or not isinstance(number, int | float):
            needed = "True or False" if is_switch else "a number"
            raise InputError(f"schedule.{field} must be {needed}, got {number!r}")
    check_numbers(numbers, {"num_train_timesteps": (1, _MOST_STEPS)}, "schedule")
    schedule = SCHEDULES[name](**numbers)
    if numbers:
        ratios = np.asarray(schedule.logsnr(jnp.asarray([0.0, 0.5, 1.0])))
        if not np.isfinite(ratios).all() or not (np.diff(ratios) < 0).all():
            raise InputError(f"schedule={name}, {numbers}: logsnr must be finite and fall with t")
    return schedule


def alpha_sigma(logsnr: Float[Array, "*b"]) -> tuple[Float[Array, "*b"], Float[Array, "*b"]]:
    """Scales of data and noise; their squares sum to one."""
    return jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))
