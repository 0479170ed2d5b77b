"""Samplers: frozen dataclasses, each a `lax.scan` from noise to data."""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float, Key

from imagen_ft.diffusion import add_noise, eps_from_x0, per_image, posterior
from imagen_ft.schedule import Schedule
from input_pipeline.files import InputError

Image = Float[Array, "b h w c"]
Denoise = Callable[[Image, Float[Array, ""]], Image]


class Sampler(Protocol):
    """One step of sampling, from time t to the earlier time s."""

    num_steps: int

    def step(
        self,
        x_t: Image,
        x0: Image,
        noise: Image,
        logsnr_t: Float[Array, ""],
        logsnr_s: Float[Array, ""],
    ) -> Image:
        """Draws x_s, given x_t and the prediction of x_0."""


@dataclasses.dataclass(frozen=True)
class DDPM:
    """Ancestral sampling (Ho et al. 2020), with the variance of Nichol and Dhariwal's Eq. 15.

    Attributes:
        num_steps: network evaluations.
        logvar_coeff: 0 for the small, 1 for the large variance.
    """

    num_steps: int
    logvar_coeff: float = 0.0

    def step(
        self,
        x_t: Image,
        x0: Image,
        noise: Image,
        logsnr_t: Float[Array, ""],
        logsnr_s: Float[Array, ""],
    ) -> Image:
        """See `Sampler`."""
        mean, log_variance = posterior(x_t, x0, logsnr_t, logsnr_s, self.logvar_coeff)
        return mean + jnp.exp(0.5 * log_variance) * noise


@dataclasses.dataclass(frozen=True)
class DDIM:
    """Implicit sampling (Song et al. 2021, Eq. 12).

    Attributes:
        num_steps: network evaluations.
        eta: 0 is deterministic, 1 has the small variance of DDPM.
    """

    num_steps: int
    eta: float = 0.0

    def step(
        self,
        x_t: Image,
        x0: Image,
        noise: Image,
        logsnr_t: Float[Array, ""],
        logsnr_s: Float[Array, ""],
    ) -> Image:
        """See `Sampler`."""
        _, log_variance = posterior(x_t, x0, logsnr_t, logsnr_s)
        variance = self.eta**2 * jnp.exp(log_variance)
        alpha_s = jnp.sqrt(jax.nn.sigmoid(per_image(logsnr_s)))
        direction = jnp.sqrt(jnp.maximum(jax.nn.sigmoid(-per_image(logsnr_s)) - variance, 0.0))
        eps = eps_from_x0(x_t, x0, logsnr_t)
        return alpha_s * x0 + direction * eps + jnp.sqrt(variance) * noise


def make_sampler(config: ml_collections.ConfigDict) -> Sampler:
    """Builds a sampler from `name` ('ddpm', 'ddim') and its own fields.

    Raises:
        InputError: an unknown name or a number of steps below 1.
    """
    if config.num_steps < 1:
        raise InputError(f"sampler.num_steps={config.num_steps}: at least 1 step is needed")
    if config.name == "ddpm":
        return DDPM(config.num_steps, config.logvar_coeff)
    if config.name == "ddim":
        return DDIM(config.num_steps, config.eta)
    raise InputError(f"sampler.name={config.name!r}: known are 'ddpm', 'ddim'")


def sample(
    sampler: Sampler,
    denoise: Denoise,
    schedule: Schedule,
    keys: Key[Array, " b"],
    shape: tuple[int, int, int],
) -> Image:
    """Draws one image a key; its noise depends on its key alone.

    Args:
        sampler: which step to take.
        denoise: (x_t, t) -> predicted x_0.
        schedule: of the noise.
        keys: one an image.
        shape: [h, w, c] of an image.
    """

    def noise(step: Array) -> Image:
        draw = lambda key: jax.random.normal(jax.random.fold_in(key, step), shape)  # noqa: E731
        return jax.vmap(draw)(keys)

    def body(x_t: Image, step: Array) -> tuple[Image, None]:
        t, s = step / sampler.num_steps, (step - 1) / sampler.num_steps
        x0 = denoise(x_t, t)
        x_s = sampler.step(x_t, x0, noise(step), schedule.logsnr(t), schedule.logsnr(s))
        # Nothing is left to draw at time 0.
        return jnp.where(step == 1, x0, x_s), None

    start = noise(jnp.zeros((), jnp.int32))
    # In the schedule's last moment a little of the data is left; of "no data" that is nothing.
    start = add_noise(jnp.zeros_like(start), start, schedule.logsnr(jnp.ones(())))
    image, _ = jax.lax.scan(body, start, jnp.arange(sampler.num_steps, 0, -1))
    return image
