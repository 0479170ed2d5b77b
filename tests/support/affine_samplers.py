"""Samplers on normal data, where every step is affine."""

import math

from imagen_ft.diffusion.ddpm import DDPM

MEAN, STD = 0.4, 0.3


def alpha_bar(t):
    first = math.atan(math.exp(-10))
    return math.cos(first + t * (math.pi / 2 - 2 * first)) ** 2


def affine_step(sampler, abar_t, abar_s):
    """x_s = a x_t + b x_0 + sqrt(variance) times standard normal noise."""
    alpha = abar_t / abar_s
    beta = 1 - alpha
    beta_small = (1 - abar_s) / (1 - abar_t) * beta
    if isinstance(sampler, DDPM):
        # Ho et al. 2020, Eq. 7; Nichol and Dhariwal 2021, Eq. 15.
        a = math.sqrt(alpha) * (1 - abar_s) / (1 - abar_t)
        b = math.sqrt(abar_s) * beta / (1 - abar_t)
        return a, b, beta**sampler.logvar_coeff * beta_small ** (1 - sampler.logvar_coeff)
    # Song et al. 2021, Eq. 12 and 16.
    variance = sampler.eta**2 * beta_small
    a = math.sqrt(1 - abar_s - variance) / math.sqrt(1 - abar_t)
    return a, math.sqrt(abar_s) - a * math.sqrt(abar_t), variance


def predicted_moments(sampler, data_mean=MEAN, data_std=STD):
    """Mean and variance of the samples, by recursion from the noise."""
    mean, variance = 0.0, 1 - alpha_bar(1)
    for step in range(sampler.num_steps, 0, -1):
        abar_t, abar_s = (
            alpha_bar(step / sampler.num_steps),
            alpha_bar((step - 1) / sampler.num_steps),
        )
        # E[x_0 | x_t] = c + d x_t
        d = math.sqrt(abar_t) * data_std**2 / (abar_t * data_std**2 + 1 - abar_t)
        c = data_mean * (1 - math.sqrt(abar_t) * d)
        if step == 1:
            return c + d * mean, d**2 * variance
        a, b, added = affine_step(sampler, abar_t, abar_s)
        mean = a * mean + b * (c + d * mean)
        variance = (a + b * d) ** 2 * variance + added
