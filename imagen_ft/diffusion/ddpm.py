"""DDPM, DDIM and Euler ancestral: samplers without a memory, one network evaluation per step."""

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
    """Samplers whose next images follow from the current ones and one prediction."""

    def step(
        self, carry: Image, denoise: Denoise, noise: Image, interval: Interval
    ) -> tuple[Image, Prediction]:
        """See `Sampler`."""
        prediction = denoise(carry, interval.t)
        x_s = self.update(carry, prediction, noise, interval.logsnr_t, interval.logsnr_s)
        # Data are at a finite logsnr, so x_s would keep a little noise: the prediction has none.
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
        """Draws x_s from x_t and the prediction of x_0; `noise` is standard normal."""


@dataclasses.dataclass(frozen=True)
class DDPM(SingleStep):
    """Ancestral sampling (Ho et al. 2020, algorithm 2) with the variance of N&D 2021, Eq. 15."""

    num_steps: int  # network evaluations
    # v of Nichol and Dhariwal 2021, Eq. 15: 0 is the small, 1 the large variance; None takes the
    # one that the network has learned.
    logvar_coeff: float | Float[Array, ""] | None = 0.0
    spacing: str = "trailing"

    @property
    def needs_learned_variance(self) -> bool:
        """See `Sampler`."""
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
        # x_s = mean + sqrt(variance) noise (Ho et al. 2020, algorithm 2).
        mean, log_variance = posterior(x_t, prediction.x0, logsnr_t, logsnr_s, coeff)
        return mean + jnp.exp(0.5 * log_variance) * noise


@dataclasses.dataclass(frozen=True)
class DDIM(SingleStep):
    """Implicit sampling (Song et al. 2021, Eq. 12), with eps taken from the thresholded x_0."""

    num_steps: int  # network evaluations
    eta: float | Float[Array, ""] = 0.0  # 0 is deterministic, 1 has DDPM's small variance
    spacing: str = "trailing"
    # Whether the last step stops at the noise of the schedule's first step instead of data, as
    # Stable Diffusion's files ask for (set_alpha_to_one=False).
    keeps_noise: bool = False

    def times(self, schedule: Schedule) -> Float[np.ndarray, " {self.num_steps}+1"]:
        """See `Sampler`."""
        times = super().times(schedule)
        if self.keeps_noise:
            # Not 0, so `Interval.last` is False there and the last step is a normal one.
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
        # sigma^2 = eta^2 beta~ (Song et al. 2021, Eq. 16).
        _, log_variance = posterior(x_t, prediction.x0, logsnr_t, logsnr_s)
        variance = self.eta**2 * jnp.exp(log_variance)
        # sqrt(1 - abar_s - sigma^2), the direction pointing to x_t; rounding can take it below 0.
        alpha_s = jnp.sqrt(jax.nn.sigmoid(per_image(logsnr_s)))
        direction = jnp.sqrt(jnp.maximum(jax.nn.sigmoid(-per_image(logsnr_s)) - variance, 0.0))
        # Not the network's own eps: after thresholding x_0 the two would no longer add up to x_t.
        eps = eps_from_x0(x_t, prediction.x0, logsnr_t)
        return alpha_s * prediction.x0 + direction * eps + jnp.sqrt(variance) * noise


@dataclasses.dataclass(frozen=True)
class EulerAncestral(DDPM):
    """k-diffusion's sampler: an Euler step past s towards data, then fresh noise back up to s.

    At the same times it draws DDPM's images; these start where there is something to see.
    """

    logsnr_min: float = LOGSNR_MIN
