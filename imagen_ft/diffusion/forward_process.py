"""The forward process, its posterior, and what networks predict."""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Key

from imagen_ft.diffusion.schedule import alpha_sigma
from launch.runtime.types import Array

# A batch. Within one signature all have the same shape; clean images are in [-1, 1].
Image = Float[Array, "b h w c"]
Scalar = Float[Array, "*b"]
# What a network may predict at x_t; see `target`.
PREDICTIONS = ("eps", "x0", "v")


def per_image(values: Scalar) -> Float[Array, "#b 1 1 1"]:
    """Appends the axes of an image to one value per image, or to one for all of them."""
    return jnp.reshape(values, (-1, 1, 1, 1))


def add_noise(x0: Image, eps: Image, logsnr: Scalar) -> Image:
    """x_t ~ q(x_t | x_0): alpha x_0 + sigma eps (Ho et al. 2020, Eq. 4)."""
    alpha, sigma = alpha_sigma(per_image(logsnr))
    return alpha * x0 + sigma * eps


def x0_from_eps(x_t: Image, eps: Image, logsnr: Scalar) -> Image:
    """Solves x_t = alpha x_0 + sigma eps for x_0; at alpha near 0 it amplifies errors of eps."""
    alpha, sigma = alpha_sigma(per_image(logsnr))
    return (x_t - sigma * eps) / alpha


def eps_from_x0(x_t: Image, x0: Image, logsnr: Scalar) -> Image:
    """Solves x_t = alpha x_0 + sigma eps for eps."""
    alpha, sigma = alpha_sigma(per_image(logsnr))
    return (x_t - alpha * x0) / sigma


def target(x0: Image, eps: Image, logsnr: Scalar, prediction: str) -> Image:
    """What a network should output at x_t = alpha x_0 + sigma eps; `logsnr` is that of x_t."""
    alpha, sigma = alpha_sigma(per_image(logsnr))
    # v = alpha eps - sigma x_0 (Salimans and Ho 2022, section 4).
    return {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0}[prediction]


def x0_from_output(output: Image, x_t: Image, logsnr: Scalar, prediction: str) -> Image:
    """The clean image that a network's output implies, given its `prediction` channels alone."""
    if prediction == "eps":
        return x0_from_eps(x_t, output, logsnr)
    alpha, sigma = alpha_sigma(per_image(logsnr))
    # x_0 = alpha x_t - sigma v, because alpha^2 + sigma^2 = 1.
    return {"x0": output, "v": alpha * x_t - sigma * output}[prediction]


def posterior(
    x_t: Image,
    x0: Image,
    logsnr_t: Scalar,
    logsnr_s: Scalar,
    logvar_coeff: float | Float[Array, ""] | Image = 0.0,
) -> tuple[Image, Float[Array, "#b #h #w #c"]]:
    """Mean and log variance of q(x_s | x_t, x_0), where s is before t, so that logsnr_s > logsnr_t.

    `logvar_coeff`, a number or one per value of the images, is v of Nichol and Dhariwal 2021, Eq.
    15: log variance = v log beta + (1 - v) log beta~, where 0 is the small variance beta~ (the
    posterior's own) and 1 the large one.
    """
    logsnr_t, logsnr_s = per_image(logsnr_t), per_image(logsnr_s)
    alpha_t, _ = alpha_sigma(logsnr_t)
    alpha_s, _ = alpha_sigma(logsnr_s)
    # Kingma et al. 2021, appendix A.4, in logsnr; Ho et al. 2020, Eq. 7 for discrete steps. expm1
    # keeps close steps exact.
    ratio, rest = jnp.exp(logsnr_t - logsnr_s), -jnp.expm1(logsnr_t - logsnr_s)
    mean = alpha_s * (ratio * x_t / alpha_t + rest * x0)
    # beta = sigma_t^2 (1 - exp(logsnr_t - logsnr_s)), beta~ = beta sigma_s^2 / sigma_t^2. In logs:
    # sigma_s^2 can underflow float32.
    log_sigma2_t, log_sigma2_s = jax.nn.log_sigmoid(-logsnr_t), jax.nn.log_sigmoid(-logsnr_s)
    log_beta = jnp.log(rest) + log_sigma2_t
    log_beta_small = log_beta + log_sigma2_s - log_sigma2_t
    # Nichol and Dhariwal 2021, Eq. 15.
    return mean, logvar_coeff * log_beta + (1.0 - logvar_coeff) * log_beta_small


def stratified_times(key: Key[Array, ""], count: int) -> Float[Array, " count"]:
    """Uniform times in [0, 1), one per 1/count, shifted together (Kingma et al. 2021, app. I.1)."""
    return (jax.random.uniform(key) + jnp.arange(count) / count) % 1.0
