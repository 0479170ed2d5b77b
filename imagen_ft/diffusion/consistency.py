"""Consistency models: every point of a trajectory maps to its first point (Song et al. 2023)."""

import dataclasses
import functools

import jax.numpy as jnp
from jaxtyping import Float

from imagen_ft.diffusion.forward_process import Image, Scalar, per_image
from imagen_ft.diffusion.samplers import Denoise, Interval, Prediction, Sampler
from imagen_ft.diffusion.schedule import Schedule, alpha_sigma
from imagen_ft.diffusion.spacing import LOGSNR_MIN, sampling_times
from launch.runtime.types import Array


@functools.cache
def boundary_time(schedule: Schedule) -> float:
    """The time of the trajectories' first points: the least noisy of Karras' spacing."""
    return float(sampling_times(schedule, 2, "karras", LOGSNR_MIN)[1])


def consistency(x_t: Image, x0: Image, logsnr: Scalar, logsnr_boundary: Float[Array, ""]) -> Image:
    """f(x, sigma) = c_skip x + c_out F at constant scale, x = x_t / alpha (Song et al. 2023).

    Appendix C for data of deviation 1, with F such that eps = 0 gives the network's `x0` (F is -v).
    At the boundary eps f is x, far from it `x0`. Returns images at constant scale.
    """
    # c_skip = 1 / ((sigma - eps)^2 + 1), c_out = (sigma - eps) / sqrt(sigma^2 + 1).
    sigma, least = per_image(deviation(logsnr)), per_image(deviation(logsnr_boundary))
    gap = jnp.maximum(sigma - least, 0.0)
    share = gap / sigma  # c_out relative to its value at eps = 0
    skip = 1.0 / (gap**2 + 1.0) - share / (sigma**2 + 1.0)
    # c_out F + c_skip x, with F replaced by what x_0 and x imply.
    return share * x0 + skip * (x_t / alpha_sigma(per_image(logsnr))[0])


def deviation(logsnr: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Standard deviation of the noise where data are at constant scale: sigma / alpha."""
    return jnp.exp(-0.5 * logsnr)


@dataclasses.dataclass(frozen=True)
class MultistepConsistency(Sampler):
    """Takes noise to data and, until the last step, back to less noise (Song et al. 2023).

    Algorithm 1; for networks distilled for it, see `distillation.Consistency`.
    """

    num_steps: int  # network evaluations
    spacing: str = "trailing"
    logsnr_min: float = LOGSNR_MIN

    def step(
        self, carry: Image, denoise: Denoise, noise: Image, interval: Interval
    ) -> tuple[Image, Prediction]:
        """See `Sampler`."""
        prediction = denoise(carry, interval.t)
        boundary = interval.schedule.logsnr(jnp.asarray(boundary_time(interval.schedule)))
        image = consistency(carry, prediction.x0, interval.logsnr_t, boundary)
        # x + sqrt(tau^2 - eps^2) z: the image already carries the boundary's noise eps.
        added = deviation(interval.logsnr_s) ** 2 - deviation(boundary) ** 2
        later = image + jnp.sqrt(jnp.maximum(added, 0.0)) * noise
        # From constant scale back to variance preserving.
        later = later * alpha_sigma(interval.logsnr_s)[0]
        image = jnp.where(interval.last, image, later)
        return image, prediction
