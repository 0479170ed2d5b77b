"""What a denoiser is trained to minimise."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Float

from imagen_ft.diffusion.denoiser import Denoiser
from imagen_ft.diffusion.forward_process import Image, posterior, target, x0_from_output
from imagen_ft.diffusion.schedule import Schedule
from launch.errors import InputError
from launch.runtime.types import Array

# T of the variational bound where time is continuous.
CONTINUOUS_STEPS = 1000


@dataclasses.dataclass(frozen=True)
class DiffusionLoss:
    """Squared error of the network's target and, for a learned variance, the variational bound.

    L_simple + vlb_weight * T * L_t with one random t per image, an estimate of L_hybrid = L_simple
    + lambda L_vlb, where L_vlb sums over T steps (Nichol and Dhariwal 2021, Eq. 4 and 16). T is the
    schedule's, 1,000 in continuous time. The published code adds L_t * T / 1000: lambda = 0.001.
    """

    # The squared error is weighted by min(SNR, gamma) for x0, divided by SNR for eps and by SNR + 1
    # for v (Hang et al. 2023, Eq. 5); 0 is unweighted.
    min_snr_gamma: float = 0.0
    # lambda, 0.001 in the paper; above 0 only with a learned variance.
    vlb_weight: float = 0.0

    def __call__(
        self,
        denoiser: Denoiser,
        output: Float[Array, "b h w out"],
        x_t: Image,
        x0: Image,
        eps: Image,
        t: Float[Array, " b"],
    ) -> dict[str, Float[Array, " b"]]:
        """Losses of each image: 'loss', to be minimised, 'simple' and, if learned, 'vlb'.

        'simple' is the unweighted mean squared error of what the network predicts, 'vlb' L_t in
        bits per dimension. `denoiser` says how to read the output; its network is not called. The
        output may have any precision; the arithmetic has that of `x0`.
        """
        output = output.astype(x0.dtype)
        mean_output, variance_output = jnp.split(output, [denoiser.channels], axis=-1)
        logsnr = denoiser.schedule.logsnr(t)
        # 1. The squared error: L_simple (Ho et al. 2020, Eq. 14), weighted.
        target_output = target(x0, eps, logsnr, denoiser.prediction)
        simple = jnp.mean(jnp.square(mean_output - target_output), axis=(1, 2, 3))
        loss = simple * min_snr_weight(logsnr, self.min_snr_gamma, denoiser.prediction)
        if not denoiser.learned_variance:
            return {"loss": loss, "simple": simple}
        # 2. The bound, which trains the variance alone (Nichol and Dhariwal 2021, section 3.1).
        mean_output = jax.lax.stop_gradient(mean_output)
        predicted = x0_from_output(mean_output, x_t, logsnr, denoiser.prediction)
        # The network's [-1, 1] is v in [0, 1] of their Eq. 15.
        vlb = bound_term(denoiser.schedule, x0, predicted, (variance_output + 1) / 2, t)
        loss += self.vlb_weight * _num_steps(denoiser.schedule) * vlb
        return {"loss": loss, "simple": simple, "vlb": vlb}


def make_loss(config: ml_collections.ConfigDict, denoiser: Denoiser) -> DiffusionLoss:
    """Builds a loss from the section `loss`, whose fields may be missing; raises InputError."""
    names = [field.name for field in dataclasses.fields(DiffusionLoss)]
    for name, value in config.items():
        if name not in names:
            raise InputError(f"loss has no field {name!r}; use {', '.join(names)}")
        if not 0.0 <= value < math.inf:
            raise InputError(
                f"loss.{name} must be finite and at least 0, got {value}; 0 turns it off"
            )
    # Bound and learned variance belong together: nothing else trains the variance.
    loss = DiffusionLoss(**config)
    if loss.vlb_weight and not denoiser.learned_variance:
        raise InputError(
            f"loss.vlb_weight must be 0 without learned_variance, got {loss.vlb_weight}; set one "
            "or the other"
        )
    if denoiser.learned_variance and not loss.vlb_weight:
        raise InputError(
            "loss.vlb_weight must be above 0 with learned_variance, or the variance drifts "
            "(DeepFloyd IF's networks have one), got 0; set 0.001"
        )
    return loss


def min_snr_weight(logsnr: Float[Array, " b"], gamma: float, prediction: str) -> Array:
    """Weight of `prediction`'s squared error (Hang et al. 2023, Eq. 5); gamma 0 is unweighted."""
    if not gamma:
        return jnp.ones_like(logsnr)
    # As logarithms: float32 holds no SNR of exp(100) or exp(-100).
    divisor = {"x0": 0.0, "eps": logsnr, "v": jax.nn.softplus(logsnr)}[prediction]
    return jnp.exp(jnp.minimum(logsnr, math.log(gamma)) - divisor)


def bound_term(
    schedule: Schedule, x0: Image, predicted: Image, logvar_coeff: Image, t: Float[Array, " b"]
) -> Float[Array, " b"]:
    """L_t of the variational bound, the mean over an image's values, in bits.

    KL(q(x_s | x_t, x_0) || p(x_s | x_t)) with s one step before t; at the first step -log p(x_0 |
    x_t) of the pixel values (Nichol and Dhariwal 2021, Eq. 5 and 6). `logvar_coeff` is v of their
    Eq. 15, per value. A discrete schedule takes `t` to its nearest step; in continuous time a step
    is 1/1000.
    """
    steps = _num_steps(schedule)
    # 1. The step. Counted in steps, not times, so that the first one compares equal.
    position = jnp.maximum(jnp.round(t * steps) if schedule.num_train_timesteps else t * steps, 1.0)
    first = (position <= 1.0)[:, None, None, None]
    # 2. Mean and both variances (Eq. 15).
    logsnr_t, logsnr_s = (schedule.logsnr((position - back) / steps) for back in (0, 1))
    # The posterior's mean is linear in (x_t, x_0): the mean of the error is the distance of the
    # means, and x_t cancels exactly.
    distance, log_beta = posterior(jnp.zeros_like(x0), x0 - predicted, logsnr_t, logsnr_s, 1.0)
    # The small variance of the first step would be 0; the second step's replaces it, as in the
    # published code. In continuous time this holds for all t below two steps.
    second = jnp.maximum(position, 2.0)
    logsnr_t, logsnr_s = (schedule.logsnr((second - back) / steps) for back in (0, 1))
    _, log_beta_small = posterior(x0, x0, logsnr_t, logsnr_s, 0.0)
    log_variance = logvar_coeff * log_beta + (1.0 - logvar_coeff) * log_beta_small
    # 3. The divergence, or at the first step the likelihood.
    kl = normal_kl(distance, log_beta_small, log_variance)
    # `where` has gradients of both branches, and NaN times 0 is NaN: the unused branch gets
    # harmless inputs.
    nll = -discretized_log_likelihood(
        x0, jnp.where(first, predicted, x0), jnp.where(first, log_variance, 0.0)
    )
    return jnp.mean(jnp.where(first, nll, kl), axis=(1, 2, 3)) / math.log(2.0)


def normal_kl(distance: Array, log_variance_q: Array, log_variance_p: Array) -> Array:
    """KL(q || p) in nats of two normal distributions whose means are `distance` apart."""
    wider = log_variance_p - log_variance_q
    # (-1 + log p - log q + q / p + distance^2 / p) / 2, with p, q the variances.
    return 0.5 * (wider + jnp.expm1(-wider) + jnp.square(distance) * jnp.exp(-log_variance_p))


def discretized_log_likelihood(x0: Image, mean: Image, log_variance: Image) -> Image:
    """Log probability, in nats, of pixels of 256 levels in [-1, 1] under a normal distribution.

    A level covers all within 1/255 of it, the first and last also all beyond (Ho et al. 2020, Eq.
    13). With the normal's own cdf, which the published code approximates.
    """
    inverse_std = jnp.exp(-0.5 * log_variance)
    error, edge = x0 - mean, jnp.abs(x0) > 0.999
    # log(cdf(upper) - cdf(lower)), mirrored to the left tail, where the log of the cdf keeps its
    # digits.
    mirrored = jnp.where(edge, -jnp.sign(x0) * error, -jnp.abs(error))
    upper = jax.scipy.special.log_ndtr((mirrored + 1 / 255) * inverse_std)
    lower = jax.scipy.special.log_ndtr((mirrored - 1 / 255) * inverse_std)
    gap = jnp.where(edge, -1.0, lower - upper)
    return upper + jnp.where(edge, 0.0, jnp.log(-jnp.expm1(gap)))


def level_losses(
    losses: Float[Array, " b"], t: Float[Array, " b"], bins: int = 10
) -> Float[Array, " bins"]:
    """Mean losses over equal bins of t in [0, 1]; NaN for a bin that no t falls into."""
    bin_index = jnp.minimum((t * bins).astype(jnp.int32), bins - 1)
    member = bin_index[:, None] == jnp.arange(bins)[None]
    total = jnp.sum(jnp.where(member, losses[:, None], 0.0), axis=0)
    count = jnp.sum(member, axis=0)
    return jnp.where(count > 0, total / jnp.maximum(count, 1), jnp.nan)


def _num_steps(schedule: Schedule) -> int:
    return schedule.num_train_timesteps or CONTINUOUS_STEPS
