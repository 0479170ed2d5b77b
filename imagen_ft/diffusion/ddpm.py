"""The samplers of the first papers: each step follows from one prediction alone."""

import abc
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from imagen_ft.diffusion.forward_process import Image, eps_from_x0, per_image, posterior
from imagen_ft.diffusion.samplers import Denoise, Interval, Prediction, Sampler
from imagen_ft.diffusion.schedule import Schedule
from imagen_ft.diffusion.spacing import LOGSNR_MIN
from launch.runtime.types import Array


class SingleStep(Sampler):
    """Samplers whose next images follow from the present ones and one prediction."""

    def step(
        self, carry: Image, denoise: Denoise, noise: Image, interval: Interval
    ) -> tuple[Image, Prediction]:
        """See `Sampler`."""
        prediction = denoise(carry, interval.t)
        x_s = self.update(carry, prediction, noise, interval.logsnr_t, interval.logsnr_s)
        return jnp.where(interval.last, prediction.x0, x_s), prediction

    @abc.abstractmethod
    def update(
        self,
        x_t: Image,
        prediction: Prediction,
        noise: Image,
        logsnr_t: Float[Array, ""],
        logsnr_s: Float[Array, ""],
    ) -> Image:
        """Draws x_s, given x_t and the prediction of x_0."""


@dataclasses.dataclass(frozen=True)
class DDPM(SingleStep):
    """Ancestral sampling (Ho et al. 2020), with the variance of Nichol and Dhariwal's Eq. 15.

    Attributes:
        num_steps: network evaluations.
        logvar_coeff: 0 for the small, 1 for the large variance; None for the one that the network
            has learned.
        spacing: see `spacing.sampling_times`.
    """

    num_steps: int
    logvar_coeff: float | Float[Array, ""] | None = 0.0
    spacing: str = "trailing"

    @property
    def needs_learned_variance(self) -> bool:
        """Where the variance is the network's."""
        return self.logvar_coeff is None

    def update(
        self,
        x_t: Image,
        prediction: Prediction,
        noise: Image,
        logsnr_t: Float[Array, ""],
        logsnr_s: Float[Array, ""],
    ) -> Image:
        """See `SingleStep`."""
        coeff = self.logvar_coeff if not self.needs_learned_variance else prediction.logvar_coeff
        assert coeff is not None, "the network has learned no variance"
        mean, log_variance = posterior(x_t, prediction.x0, logsnr_t, logsnr_s, coeff)
        return mean + jnp.exp(0.5 * log_variance) * noise


@dataclasses.dataclass(frozen=True)
class DDIM(SingleStep):
    """Implicit sampling (Song et al. 2021, Eq. 12); eps is that of the thresholded x_0.

    Attributes:
        num_steps: network evaluations.
        eta: 0 is deterministic, 1 has the small variance of DDPM.
        spacing: see `spacing.sampling_times`.
        keeps_noise: whether the last step leaves the noise of the schedule's first one, as Stable
            Diffusion's files ask for (set_alpha_to_one=False), and not none.
    """

    num_steps: int
    eta: float | Float[Array, ""] = 0.0
    spacing: str = "trailing"
    keeps_noise: bool = False

    def times(self, schedule: Schedule) -> Float[np.ndarray, " {self.num_steps}+1"]:
        """See `Sampler`."""
        times = super().times(schedule)
        if self.keeps_noise:
            times[-1] = 1.0 / (schedule.num_train_timesteps or 1000)
        return times

    def update(
        self,
        x_t: Image,
        prediction: Prediction,
        noise: Image,
        logsnr_t: Float[Array, ""],
        logsnr_s: Float[Array, ""],
    ) -> Image:
        """See `SingleStep`."""
        _, log_variance = posterior(x_t, prediction.x0, logsnr_t, logsnr_s)
        variance = self.eta**2 * jnp.exp(log_variance)
        alpha_s = jnp.sqrt(jax.nn.sigmoid(per_image(logsnr_s)))
        direction = jnp.sqrt(jnp.maximum(jax.nn.sigmoid(-per_image(logsnr_s)) - variance, 0.0))
        eps = eps_from_x0(x_t, prediction.x0, logsnr_t)
        return alpha_s * prediction.x0 + direction * eps + jnp.sqrt(variance) * noise


@dataclasses.dataclass(frozen=True)
class EulerAncestral(DDPM):
    """Euler's step to less noise than the next time has, then fresh noise up to it.

    k-diffusion's sampler of this name: with the small variance the same images as DDPM, from a
    time at which there is something to see.
    """

    logsnr_min: float = LOGSNR_MIN
