"""Noise schedules of variance-preserving diffusion: log signal-to-noise ratio by time."""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from input_pipeline.files import InputError


class Schedule(Protocol):
    """`t` in [0, 1]: 0 is data, 1 is noise."""

    def logsnr(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """log(alpha^2 / sigma^2), decreasing in t."""

    def model_time(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """`t` in the units that the network was trained with."""


@dataclasses.dataclass(frozen=True)
class Cosine:
    """alpha = cos(pi t / 2), with t squeezed so that logsnr stays in its bounds.

    Nichol and Dhariwal 2021, Eq. 17, in continuous time as in Imagen.
    """

    logsnr_min: float = -20.0
    logsnr_max: float = 20.0

    def logsnr(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """See `Schedule`."""
        first = jnp.arctan(jnp.exp(-0.5 * self.logsnr_max))
        last = jnp.arctan(jnp.exp(-0.5 * self.logsnr_min))
        return -2.0 * jnp.log(jnp.tan(first + t * (last - first)))

    def model_time(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """See `Schedule`."""
        return 1000.0 * t


@dataclasses.dataclass(frozen=True)
class Linear:
    """beta rising linearly over 1,000 steps, in continuous time (Ho et al. 2020).

    log abar(t) is the integral of -beta, 1,000 times from `beta_first` to `beta_last`.
    """

    beta_first: float = 1e-4
    beta_last: float = 0.02

    def logsnr(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """See `Schedule`."""
        slope = self.beta_last - self.beta_first
        # A first thousandth keeps the ratio finite at t = 0, as a first discrete step would.
        log_abar = -1000.0 * (self.beta_first * t + 0.5 * slope * t * t) - self.beta_first
        return log_abar - jnp.log(-jnp.expm1(log_abar))

    def model_time(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """See `Schedule`."""
        return 1000.0 * t


SCHEDULES = {"cosine": Cosine, "linear": Linear}


def make_schedule(name: str) -> Schedule:
    """Returns the schedule of that name.

    Raises:
        InputError: there is none.
    """
    if name not in SCHEDULES:
        raise InputError(f"schedule {name!r}: known are {', '.join(SCHEDULES)}")
    return SCHEDULES[name]()


def alpha_sigma(logsnr: Float[Array, "*b"]) -> tuple[Float[Array, "*b"], Float[Array, "*b"]]:
    """Scales of data and noise; their squares sum to one."""
    return jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))
