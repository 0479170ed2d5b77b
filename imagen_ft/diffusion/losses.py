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

# Steps that the bound has where time is continuous.
CONTINUOUS_STEPS = 1000


@dataclasses.dataclass(frozen=True)
class DiffusionLoss:
    """Squared error of the network's target and, for its variance, the variational bound.

    L_simple + vlb_weight * T * L_t, with one L_t at a random t an image: an estimate of L_hybrid =
    L_simple + lambda L_vlb, whose L_vlb is the sum over the T steps (Nichol and Dhariwal 2021,
    Eq. 4 and 16). T is the schedule's, 1,000 in continuous time. What the published code adds,
    L_t * T / 1000, is lambda = 0.001.

    Attributes:
        min_snr_gamma: the squared error is weighted by min(SNR, gamma) for x0, divided by SNR for
            eps and by SNR + 1 for v (Hang et al. 2023, Eq. 5); 0 is unweighted.
        vlb_weight: lambda, 0.001 in the paper; above 0 with a learned variance alone.
    """

    min_snr_gamma: float = 0.0
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
        """Losses of each image.

        Args:
            denoiser: what made the output; its network is not called.
            output: of the network, for x_t; any precision, the arithmetic has that of `x0`.
            x_t: noisy images.
            x0: clean images in [-1, 1].
            eps: their noise.
            t: time in [0, 1].

        Returns:
            'loss', to be minimised; 'simple', the unweighted mean squared error of what the network
            predicts; with a learned variance 'vlb', L_t in bits per dimension.
        """
        output = output.astype(x0.dtype)
        mean_output, variance_output = jnp.split(output, [denoiser.channels], axis=-1)
        logsnr = denoiser.schedule.logsnr(t)
        target_output = target(x0, eps, logsnr, denoiser.prediction)
        simple = jnp.mean(jnp.square(mean_output - target_output), axis=(1, 2, 3))
        loss = simple * min_snr_weight(logsnr, self.min_snr_gamma, denoiser.prediction)
        if not denoiser.learned_variance:
            return {"loss": loss, "simple": simple}
        # The bound trains the variance alone (Nichol and Dhariwal 2021, section 3.1).
        mean_output = jax.lax.stop_gradient(mean_output)
        predicted = x0_from_output(mean_output, x_t, logsnr, denoiser.prediction)
        vlb = bound_term(denoiser.schedule, x0, predicted, (variance_output + 1) / 2, t)
        loss += self.vlb_weight * _num_steps(denoiser.schedule) * vlb
        return {"loss": loss, "simple": simple, "vlb": vlb}


def make_loss(config: ml_collections.ConfigDict, denoiser: Denoiser) -> DiffusionLoss:
    """Builds a loss from the fields of `DiffusionLoss`; any may be missing.

    Args:
        config: the section `loss`.
        denoiser: what is trained.

    Raises:
        InputError: an unknown field, a value that is negative or not finite, a bound without a
            learned variance or a learned variance without a bound.
    """
    names = [field.name for field in dataclasses.fields(DiffusionLoss)]
    for name, value in config.items():
        if name not in names:
            raise InputError(f"loss has no field {name!r}; use {', '.join(names)}")
        if not 0.0 <= value < math.inf:
            raise InputError(
                f"loss.{name} must be finite and at least 0, got {value}; 0 leaves it out"
            )
    loss = DiffusionLoss(**config)
    if loss.vlb_weight and not denoiser.learned_variance:
        raise InputError(
            f"loss.vlb_weight must be 0 without learned_variance, got {loss.vlb_weight}"
        )
    if denoiser.learned_variance and not loss.vlb_weight:
        raise InputError(
            "loss.vlb_weight must be above 0 with learned_variance, which would drift "
            "untrained (DeepFloyd IF's networks have one), got 0; set 0.001"
        )
    return loss


def min_snr_weight(logsnr: Float[Array, " b"], gamma: float, prediction: str) -> Array:
    """Weight of the squared error (Hang et al. 2023, Eq. 5).

    Args:
        logsnr: of x_t.
        gamma: the most that the error of x_0 is weighted by; 0 is unweighted.
        prediction: whose error it is, one of `forward_process.PREDICTIONS`.
    """
    if not gamma:
        return jnp.ones_like(logsnr)
    # As logarithms: float32 holds no SNR of exp(100) or exp(-100).
    divisor = {"x0": 0.0, "eps": logsnr, "v": jax.nn.softplus(logsnr)}[prediction]
    return jnp.exp(jnp.minimum(logsnr, math.log(gamma)) - divisor)


def bound_term(
    schedule: Schedule, x0: Image, predicted: Image, logvar_coeff: Image, t: Float[Array, " b"]
) -> Float[Array, " b"]:
    """L_t of the variational bound (Nichol and Dhariwal 2021, Eq. 5 and 6).

    KL(q(x_s | x_t, x_0) || p(x_s | x_t)) with s one step before t; at the first step
    -log p(x_0 | x_t) of the pixels' values.

    The first step's small variance would be 0; that of the second takes its place, as in the
    published code. In continuous time this holds for all t below two steps.

    Args:
        schedule: a discrete one takes `t` to its nearest step; otherwise a step is 1/1000 long.
        x0: clean images in [-1, 1].
        predicted: the same by the network.
        logvar_coeff: v of Nichol and Dhariwal's Eq. 15, of each value.
        t: time in [0, 1].

    Returns:
        Means over the values of an image, in bits.
    """
    steps = _num_steps(schedule)
    # In steps, so that the first one compares equal.
    position = jnp.maximum(jnp.round(t * steps) if schedule.num_train_timesteps else t * steps, 1.0)
    first = (position <= 1.0)[:, None, None, None]
    logsnr_t, logsnr_s = (schedule.logsnr((position - back) / steps) for back in (0, 1))
    # The mean is linear: that of the error is the means' distance, and x_t cancels exactly.
    distance, log_beta = posterior(jnp.zeros_like(x0), x0 - predicted, logsnr_t, logsnr_s, 1.0)
    second = jnp.maximum(position, 2.0)
    logsnr_t, logsnr_s = (schedule.logsnr((second - back) / steps) for back in (0, 1))
    _, log_beta_small = posterior(x0, x0, logsnr_t, logsnr_s, 0.0)
    log_variance = logvar_coeff * log_beta + (1.0 - logvar_coeff) * log_beta_small
    kl = normal_kl(distance, log_beta_small, log_variance)
    # Gradients of the branch that is not taken have to be finite too.
    nll = -discretized_log_likelihood(
        x0, jnp.where(first, predicted, x0), jnp.where(first, log_variance, 0.0)
    )
    return jnp.mean(jnp.where(first, nll, kl), axis=(1, 2, 3)) / math.log(2.0)


def normal_kl(distance: Array, log_variance_q: Array, log_variance_p: Array) -> Array:
    """KL(q || p) of two normal distributions whose means are `distance` apart, in nats."""
    wider = log_variance_p - log_variance_q
    return 0.5 * (wider + jnp.expm1(-wider) + jnp.square(distance) * jnp.exp(-log_variance_p))


def discretized_log_likelihood(x0: Image, mean: Image, log_variance: Image) -> Image:
    """Log probability, in nats, of pixels of 256 levels under a normal distribution.

    A level has all that is within 1/255 of it, the first and last one all that is beyond, too (Ho
    et al. 2020, Eq. 13). With the normal's own cdf, where the published code approximates it.

    Args:
        x0: levels, [0, 255] as [-1, 1].
        mean: of the distribution.
        log_variance: of the distribution.
    """
    inverse_std = jnp.exp(-0.5 * log_variance)
    error, edge = x0 - mean, jnp.abs(x0) > 0.999
    # Mirrored to the left tail, where the cdf's logarithm has all its digits.
    mirrored = jnp.where(edge, -jnp.sign(x0) * error, -jnp.abs(error))
    upper = jax.scipy.special.log_ndtr((mirrored + 1 / 255) * inverse_std)
    lower = jax.scipy.special.log_ndtr((mirrored - 1 / 255) * inverse_std)
    gap = jnp.where(edge, -1.0, lower - upper)
    return upper + jnp.where(edge, 0.0, jnp.log(-jnp.expm1(gap)))


def level_losses(
    losses: Float[Array, " b"], t: Float[Array, " b"], bins: int = 10
) -> Float[Array, " bins"]:
    """Means of the losses over equal bins of [0, 1] that `t` falls in; NaN where it never does."""
    bin_index = jnp.minimum((t * bins).astype(jnp.int32), bins - 1)
    member = bin_index[:, None] == jnp.arange(bins)[None]
    total = jnp.sum(jnp.where(member, losses[:, None], 0.0), axis=0)
    count = jnp.sum(member, axis=0)
    return jnp.where(count > 0, total / jnp.maximum(count, 1), jnp.nan)


def _num_steps(schedule: Schedule) -> int:
    return schedule.num_train_timesteps or CONTINUOUS_STEPS
