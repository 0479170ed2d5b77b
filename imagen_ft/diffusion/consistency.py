"""Consistency models: every point of a trajectory is taken to its first one (Song et al. 2023)."""

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
    """The time of the trajectories' first points: that of the least noise of Karras' spacing."""
    return float(sampling_times(schedule, 2, "karras", LOGSNR_MIN)[1])


def consistency(x_t: Image, x0: Image, logsnr: Scalar, logsnr_boundary: Float[Array, ""]) -> Image:
    """f(x, sigma) = c_skip x + c_out F, of what has constant scale: x = x_t / alpha.

    c_skip = 1 / ((sigma - eps)^2 + 1) and c_out = (sigma - eps) / sqrt(sigma^2 + 1), 1 and 0 at
    the boundary eps (Song et al. 2023, appendix C, with data of deviation 1). F is that of which
    the network's x_0 is made with eps = 0: it is -v, and far from the boundary f is x_0.

    Args:
        x_t: noisy images.
        x0: the clean images that a network predicts.
        logsnr: of x_t.
        logsnr_boundary: of the trajectories' first points.

    Returns:
        Images of the boundary, of constant scale.
    """
    sigma, least = per_image(deviation(logsnr)), per_image(deviation(logsnr_boundary))
    gap = jnp.maximum(sigma - least, 0.0)
    share = gap / sigma  # c_out over that without a boundary
    skip = 1.0 / (gap**2 + 1.0) - share / (sigma**2 + 1.0)
    return share * x0 + skip * (x_t / alpha_sigma(per_image(logsnr))[0])


def deviation(logsnr: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Sigma / alpha: of the noise, where data have constant scale."""
    return jnp.exp(-0.5 * logsnr)


@dataclasses.dataclass(frozen=True)
class MultistepConsistency(Sampler):
    """Takes noise to data, and all but the last time back to less noise (algorithm 1).

    For networks that were distilled so, see `distillation.Consistency`.

    Attributes:
        num_steps: network evaluations.
        spacing: see `spacing.sampling_times`.
        logsnr_min: see `Sampler`.
    """

    num_steps: int
    spacing: str = "trailing"
    logsnr_min: float = LOGSNR_MIN

    def step(
        self, carry: Image, denoise: Denoise, noise: Image, interval: Interval
    ) -> tuple[Image, Prediction]:
        """See `Sampler`."""
        prediction = denoise(carry, interval.t)
        boundary = interval.schedule.logsnr(jnp.asarray(boundary_time(interval.schedule)))
        image = consistency(carry, prediction.x0, interval.logsnr_t, boundary)
        # The image has the boundary's noise already.
        added = deviation(interval.logsnr_s) ** 2 - deviation(boundary) ** 2
        later = image + jnp.sqrt(jnp.maximum(added, 0.0)) * noise
        later = later * alpha_sigma(interval.logsnr_s)[0]
        image = jnp.where(interval.last, image, later)
        return image, prediction
