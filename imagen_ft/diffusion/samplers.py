"""Samplers: frozen dataclasses, each a `lax.scan` from noise to data."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Float, Key

from imagen_ft.diffusion.process import add_noise, eps_from_x0, per_image, posterior
from imagen_ft.diffusion.schedule import Schedule, sampling_times
from launch.errors import InputError

Image = Float[Array, "b h w c"]


class Prediction(NamedTuple):
    """What a network says of x_t.

    Attributes:
        x0: the clean image.
        logvar_coeff: learned mixing of log variances, of each value; None where it is not learned.
    """

    x0: Image
    logvar_coeff: Image | None = None


Denoise = Callable[[Image, Float[Array, ""]], Prediction]
# (step) -> standard normal noise; step 0 is what sampling starts from.
Noise = Callable[[Array], Image]


class Sampler(Protocol):
    """One step of sampling, from time t to the earlier time s."""

    num_steps: int
    spacing: str

    def step(
        self,
        x_t: Image,
        prediction: Prediction,
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
        logvar_coeff: 0 for the small, 1 for the large variance; None for the one that the network
            has learned.
        spacing: see `schedule.sampling_times`.
    """

    num_steps: int
    logvar_coeff: float | None = 0.0
    spacing: str = "trailing"

    def step(
        self,
        x_t: Image,
        prediction: Prediction,
        noise: Image,
        logsnr_t: Float[Array, ""],
        logsnr_s: Float[Array, ""],
    ) -> Image:
        """See `Sampler`."""
        learned = self.logvar_coeff is None
        coeff = prediction.logvar_coeff if learned else self.logvar_coeff
        mean, log_variance = posterior(x_t, prediction.x0, logsnr_t, logsnr_s, coeff)
        return mean + jnp.exp(0.5 * log_variance) * noise


@dataclasses.dataclass(frozen=True)
class DDIM:
    """Implicit sampling (Song et al. 2021, Eq. 12); eps is that of the thresholded x_0.

    Attributes:
        num_steps: network evaluations.
        eta: 0 is deterministic, 1 has the small variance of DDPM.
        spacing: see `schedule.sampling_times`.
    """

    num_steps: int
    eta: float = 0.0
    spacing: str = "trailing"

    def step(
        self,
        x_t: Image,
        prediction: Prediction,
        noise: Image,
        logsnr_t: Float[Array, ""],
        logsnr_s: Float[Array, ""],
    ) -> Image:
        """See `Sampler`."""
        _, log_variance = posterior(x_t, prediction.x0, logsnr_t, logsnr_s)
        variance = self.eta**2 * jnp.exp(log_variance)
        alpha_s = jnp.sqrt(jax.nn.sigmoid(per_image(logsnr_s)))
        direction = jnp.sqrt(jnp.maximum(jax.nn.sigmoid(-per_image(logsnr_s)) - variance, 0.0))
        eps = eps_from_x0(x_t, prediction.x0, logsnr_t)
        return alpha_s * prediction.x0 + direction * eps + jnp.sqrt(variance) * noise


def make_sampler(config: ml_collections.ConfigDict) -> Sampler:
    """Builds a sampler from `name` ('ddpm', 'ddim') and its own fields.

    `logvar_coeff` may be 'learned'; `spacing` is 'trailing' where it is missing.

    Raises:
        InputError: an unknown name, a number of steps below 1, a strength of the noise outside
            [0, 1].
    """
    if config.num_steps < 1:
        raise InputError(f"sampler.num_steps={config.num_steps}: at least 1 step is needed")
    spacing = config.get("spacing", "trailing")
    if config.name == "ddpm":
        learned = config.logvar_coeff == "learned"
        coeff = None if learned else _fraction("logvar_coeff", config.logvar_coeff)
        return DDPM(config.num_steps, coeff, spacing)
    if config.name == "ddim":
        return DDIM(config.num_steps, _fraction("eta", config.eta), spacing)
    raise InputError(f"sampler.name={config.name!r}: known are 'ddpm', 'ddim'")


def _fraction(name: str, value: float | str) -> float:
    # Where a config says 'learned', the command line can put no number, but its digits.
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0.0 <= number <= 1.0:
        raise InputError(f"sampler.{name}={value!r}: a number in [0, 1] is needed")
    return number


def noise_of_keys(keys: Key[Array, " b"], shape: tuple[int, int, int]) -> Noise:
    """Noise of each image by its key and the step alone.

    Args:
        keys: one an image.
        shape: [h, w, c] of an image.
    """

    def noise(step: Array) -> Image:
        draw = lambda key: jax.random.normal(jax.random.fold_in(key, step), shape)  # noqa: E731
        return jax.vmap(draw)(keys)

    return noise


def sample(
    sampler: Sampler,
    denoise: Denoise,
    schedule: Schedule,
    noise: Noise,
    start: Image | None = None,
    skip_steps: int = 0,
    path: bool = False,
) -> tuple[Image, Image | None]:
    """Draws images.

    Args:
        sampler: which step to take.
        denoise: (x_t, t) -> prediction.
        schedule: of the noise.
        noise: of each step, the last ones counting down to 1; see `noise_of_keys`.
        start: images to begin with, noised to the time of the first step that is taken (real
            guidance: He et al. 2023, section 3.3); None begins with noise.
        skip_steps: steps at the noisiest end that are not taken.
        path: whether the predictions of x_0 at every step are returned too.

    Returns:
        The images; the predictions [steps, b, h, w, c] or None.
    """
    times = sampling_times(schedule, sampler.num_steps, sampler.spacing)
    steps = np.arange(sampler.num_steps, 0, -1)[skip_steps:]

    def body(x_t: Image, at: tuple[Array, Array, Array]) -> tuple[Image, Image | None]:
        step, t, s = at
        prediction = denoise(x_t, t)
        x_s = sampler.step(x_t, prediction, noise(step), schedule.logsnr(t), schedule.logsnr(s))
        # Nothing is left to draw at time 0.
        return jnp.where(step == 1, prediction.x0, x_s), prediction.x0 if path else None

    x = noise(jnp.zeros((), jnp.int32))
    if start is not None:
        x = add_noise(start, x, schedule.logsnr(jnp.asarray(times[skip_steps])))
    return jax.lax.scan(body, x, (steps, times[skip_steps:-1], times[skip_steps + 1 :]))
