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
# alpha of the last step where zero_terminal_snr asks for 0: float32 cannot tell it from 0, and its
# logarithm is finite.
_NO_DATA = 1e-9


@runtime_checkable
class Schedule(Protocol):
    """`t` in [0, 1]: 0 is data, 1 is noise. Frozen and hashable: a static argument of jit."""

    # Steps of a discrete schedule, where step k is t = (k + 1) / steps; 0 where time is continuous.
    num_train_timesteps: int

    def __hash__(self) -> int:
        """By value, as frozen dataclasses have it."""

    def logsnr(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """log(alpha^2 / sigma^2), decreasing in t."""

    def time(self, logsnr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """The inverse of `logsnr`; for a discrete schedule the t of the nearest step."""

    def model_time(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """`t` in the units that the network was trained with, such as 0 to 999."""


@dataclasses.dataclass(frozen=True)
class Cosine:
    """alpha = cos(pi t / 2), with t squeezed so that logsnr stays within its bounds.

    Nichol and Dhariwal 2021, Eq. 17, in continuous time as in Imagen.
    """

    logsnr_min: float = -20.0
    logsnr_max: float = 20.0
    num_train_timesteps: int = dataclasses.field(default=0, init=False)

    def logsnr(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """See `Schedule`."""
        # tan(angle) = sigma / alpha, so logsnr = -2 log tan(angle), with the angle linear in t.
        first, last = _angle(self.logsnr_max), _angle(self.logsnr_min)
        return -2.0 * jnp.log(jnp.tan(first + t * (last - first)))

    def time(self, logsnr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """See `Schedule`."""
        first, last = _angle(self.logsnr_max), _angle(self.logsnr_min)
        # Solved for t. Ratios beyond the bounds are clipped to the ends.
        return jnp.clip((_angle(logsnr) - first) / (last - first), 0.0, 1.0)

    def model_time(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """See `Schedule`."""
        # Sinusoidal time embeddings expect the range of 1,000 discrete steps.
        return 1000.0 * t


def _angle(logsnr: float | Float[Array, "*b"]) -> Float[Array, "*b"]:
    # sigma / alpha = exp(-logsnr / 2).
    return jnp.arctan(jnp.exp(-0.5 * logsnr))


@dataclasses.dataclass(frozen=True)
class Linear:
    """beta rises linearly over 1,000 steps (Ho et al. 2020), here in continuous time."""

    beta_first: float = 1e-4
    beta_last: float = 0.02
    num_train_timesteps: int = dataclasses.field(default=0, init=False)

    def logsnr(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """See `Schedule`."""
        slope = self.beta_last - self.beta_first
        # log abar(t) = -1000 (beta_first t + (beta_last - beta_first) t^2 / 2), less the beta of a
        # first discrete step, which keeps the ratio finite at t = 0.
        log_abar = -1000.0 * (self.beta_first * t + 0.5 * slope * t * t) - self.beta_first
        # abar = alpha^2 and 1 - abar = sigma^2; expm1 keeps the digits of a small sigma.
        return log_abar - jnp.log(-jnp.expm1(log_abar))

    def time(self, logsnr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """See `Schedule`."""
        slope = self.beta_last - self.beta_first
        # log abar = log sigmoid(logsnr), so this is the area under beta up to t.
        area = jnp.maximum(-jax.nn.log_sigmoid(logsnr) - self.beta_first, 0.0) / 1000.0
        # The root of the quadratic in the form 2c / (b + sqrt(b^2 + 4ac)): the textbook form
        # subtracts two close numbers near t = 0.
        root = jnp.sqrt(self.beta_first**2 + 2.0 * slope * area)
        return jnp.clip(2.0 * area / (self.beta_first + root), 0.0, 1.0)

    def model_time(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """See `Schedule`."""
        return 1000.0 * t


@dataclasses.dataclass(frozen=True)
class Discrete(abc.ABC):
    """A table of steps: t is rounded to the nearest; below half a step it is data without noise."""

    num_train_timesteps: int = 1000

    @property
    @abc.abstractmethod
    def ratios(self) -> Float[np.ndarray, " {self.num_train_timesteps}+1"]:
        """Log ratio by row: row 0 is data, row k + 1 is step k."""

    def logsnr(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """See `Schedule`."""
        return jnp.asarray(self.ratios)[self._row(t)]

    def time(self, logsnr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """See `Schedule`; at least the first step, never data."""
        ratios = self.ratios[1:]
        # Boundaries halfway between neighbouring steps. searchsorted needs rising values, and
        # ratios fall: hence the signs.
        between = 0.5 * (ratios[1:] + ratios[:-1])
        row = 1 + jnp.searchsorted(-between, -jnp.asarray(logsnr))
        return row / self.num_train_timesteps

    def model_time(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """See `Schedule`; the step's number, 0 to 999 for the public weights."""
        # Data (row 0) has no step of its own and shares that of row 1.
        return jnp.maximum(self._row(t) - 1, 0).astype(jnp.float32)

    def _row(self, t: Float[Array, "*b"]) -> Array:
        return jnp.round(jnp.asarray(t) * self.num_train_timesteps).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class SquaredCos(Discrete):
    """DeepFloyd IF's discrete cosine schedule (Nichol and Dhariwal 2021, Eq. 17), beta <= 0.999."""

    @property
    def ratios(self) -> Float[np.ndarray, " {self.num_train_timesteps}+1"]:
        """See `Discrete`."""
        return _squared_cos_ratios(self.num_train_timesteps)


@dataclasses.dataclass(frozen=True)
class ScaledLinear(Discrete):
    """Stable Diffusion's schedule: sqrt(beta) rises linearly (Rombach et al. 2022)."""

    beta_first: float = 0.00085  # of the first step
    beta_last: float = 0.012  # of the last step
    # Whether the last step holds no data (Lin et al. 2024, Algorithm 1). The network must then
    # predict something other than eps, which says nothing about x_0 there.
    zero_terminal_snr: bool = False

    @property
    def ratios(self) -> Float[np.ndarray, " {self.num_train_timesteps}+1"]:
        """See `Discrete`."""
        return _scaled_linear_ratios(*dataclasses.astuple(self))


@functools.cache
def _squared_cos_ratios(steps: int) -> np.ndarray:
    # abar(t) = cos((t + s) / (1 + s) pi / 2)^2 with s = 0.008, beta_k = 1 - abar_k+1 / abar_k
    # (Nichol and Dhariwal 2021, Eq. 17).
    angle = (np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2
    betas = np.minimum(1.0 - np.cos(angle[1:]) ** 2 / np.cos(angle[:-1]) ** 2, 0.999)
    return _with_data(np.log(_alphas(betas)).cumsum())


@functools.cache
@np.errstate(divide="ignore", invalid="ignore")  # `make_schedule` checks the result
def _scaled_linear_ratios(steps: int, first: float, last: float, zero_snr: bool) -> np.ndarray:
    betas = np.linspace(np.sqrt(first), np.sqrt(last), steps) ** 2
    log_abar = np.log(_alphas(betas)).cumsum()
    if zero_snr:
        # Lin et al. 2024, Algorithm 1: shift sqrt(abar) so that the last is 0, and scale it so that
        # the first stays the same.
        scale = np.exp(0.5 * log_abar)
        scale = (scale - scale[-1]) * scale[0] / (scale[0] - scale[-1])
        log_abar = 2 * np.log(np.maximum(scale, _NO_DATA))
    return _with_data(log_abar)


def _alphas(betas: np.ndarray) -> np.ndarray:
    # In float32 as diffusers computes it: the public weights are used with those very ratios.
    return (np.float32(1.0) - betas.astype(np.float32)).astype(np.float64)


def _with_data(log_abar: np.ndarray) -> np.ndarray:
    logsnr = log_abar - np.log(-np.expm1(log_abar))
    # Row 0 is data: at logsnr 100 its noise is below what float32 resolves.
    return np.concatenate([[100.0], logsnr]).astype(np.float32)


SCHEDULES = {
    "cosine": Cosine,
    "linear": Linear,
    "scaled_linear": ScaledLinear,
    "squaredcos_cap_v2": SquaredCos,
}


def make_schedule(config: str | Fields) -> Schedule:
    """Builds a schedule from its name, or a dict of `name` and numbers; raises InputError."""
    numbers: dict[str, Any] = {"name": config} if isinstance(config, str) else dict(config)
    name = numbers.pop("name", None)
    # 1. The name.
    if name not in tuple(SCHEDULES):  # a list, unhashable, must get a message too
        raise InputError(f"schedule must be one of {', '.join(SCHEDULES)}, got {name!r}")
    # 2. The fields: known, of the right type, in range.
    names = [field.name for field in dataclasses.fields(SCHEDULES[name]) if field.init]
    if unknown := sorted(set(numbers) - set(names)):
        raise InputError(f"schedule.{unknown[0]} is not a field of {name!r}; use {names}")
    for field, number in numbers.items():
        # bool is a subclass of int: True would pass for a number, and 1 for a switch.
        is_switch = isinstance(getattr(SCHEDULES[name], field), bool)
        if isinstance(number, bool) != is_switch or not isinstance(number, int | float):
            needed = "True or False" if is_switch else "a number"
            raise InputError(f"schedule.{field} must be {needed}, got {number!r}")
    check_numbers(numbers, {"num_train_timesteps": (1, _MOST_STEPS)}, "schedule")
    # 3. The schedule as a whole: betas above 1, for instance, only show in the ratios.
    schedule = SCHEDULES[name](**numbers)
    if numbers:
        ratios = np.asarray(schedule.logsnr(jnp.asarray([0.0, 0.5, 1.0])))
        if not np.isfinite(ratios).all() or not (np.diff(ratios) < 0).all():
            raise InputError(
                f"schedule={name}, {numbers}: logsnr must be finite and fall with t; change the "
                "schedule's fields"
            )
    return schedule


def alpha_sigma(logsnr: Float[Array, "*b"]) -> tuple[Float[Array, "*b"], Float[Array, "*b"]]:
    """Scales of data and noise, variance preserving: alpha^2 + sigma^2 = 1."""
    # alpha^2 = sigmoid(logsnr), sigma^2 = sigmoid(-logsnr) (Kingma et al. 2021).
    return jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))
