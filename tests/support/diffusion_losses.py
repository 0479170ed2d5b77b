"""Losses of a denoiser whose outputs are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtr

from imagen_ft.diffusion.denoiser import Denoiser
from imagen_ft.diffusion.forward_process import add_noise, target

LEVELS = np.arange(256) / 127.5 - 1


class NoNetwork:
    """Takes the place of a network that is never called."""

    dtype = None

    def init(self, *args):
        raise NotImplementedError

    def apply(self, *args, method=None):
        raise NotImplementedError


def make(schedule, prediction="eps", learned=True):
    return Denoiser(NoNetwork(), schedule, 2, 0, 1, learned_variance=learned, prediction=prediction)


def levels(rng, shape):
    """Pixels, including the first and the last level."""
    found = rng.integers(0, 256, shape)
    found[:, 0, 0], found[:, -1, -1] = 0, 255
    return np.float32(LEVELS[found])


def batch(schedule, t, prediction="eps", error=0.3, size=3, seed=0):
    """Arguments of a loss: pixels, their noise, and a wrong prediction of it."""
    rng = np.random.default_rng(seed)
    shape = (len(t), size, size, 1)
    x0, eps = levels(rng, shape), rng.normal(size=shape).astype(np.float32)
    logsnr = schedule.logsnr(jnp.asarray(t))
    output = target(x0, eps, logsnr, prediction) + error * rng.normal(size=shape)
    variance = rng.uniform(-1.2, 1.2, size=shape)
    output = np.concatenate([output, variance], axis=-1).astype(np.float32)
    return output, np.asarray(add_noise(x0, eps, logsnr)), x0, eps, np.float32(t)


@functools.partial(jax.jit, static_argnums=(0, 1))
def losses(loss, denoiser, *inputs):
    return loss(denoiser, *inputs)


def log_likelihood(x0, mean, log_variance, cdf=ndtr):
    """Of pixels under a normal distribution as in improved-diffusion, in float64."""
    above, below = (cdf((x0 - mean + side / 255) * np.exp(-0.5 * log_variance)) for side in (1, -1))
    inner = np.where(x0 > 0.999, 1 - below, above - below)
    return np.log(np.maximum(np.where(x0 < -0.999, above, inner), 1e-12))
