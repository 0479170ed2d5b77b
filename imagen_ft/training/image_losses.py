"""Noises a batch, and computes the loss of each of its images."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Key

from imagen_ft.diffusion.denoiser import Denoiser
from imagen_ft.diffusion.forward_process import Image, add_noise, stratified_times
from imagen_ft.diffusion.losses import DiffusionLoss
from imagen_ft.diffusion.schedule import Schedule
from imagen_ft.diffusion.stage import AUTOENCODER
from imagen_ft.models.autoencoder import encode_one_by_one
from launch.runtime.images import to_float
from launch.runtime.types import Array, Batch, Variables

Inputs = dict[str, Array]
Losses = dict[str, Float[Array, " b"]]
# Field of a batch that replaces images by what was kept of them, see `kept_latents`.
MOMENTS = "moments"


class Noised(NamedTuple):
    """A batch as a network sees it."""

    x0: Image  # clean images in [-1, 1]
    x_t: Image
    condition: Image | None  # what super-resolution sees beside them; None for a base
    level: Float[Array, " b"] | None  # that the condition was noised to


def draw_inputs(
    denoiser: Denoiser,
    batch: Batch,
    key: Key[Array, ""],
    times: Callable[[Float[Array, " b"]], Inputs] | None = None,
    samples_latents: bool = True,
) -> Inputs:
    """Adds to a batch all that is random in its loss, so that the rest can run in parts.

    The batch has 'label' and either 'image', uint8 [b, size, size, c], or `MOMENTS`, float16 [b,
    size, size, 2 z]. `times` makes 't' and what a method needs from uniform numbers; None is any
    time. Without `samples_latents` latents are the mean of what the auto-encoder says instead of a
    draw.
    """
    shape = (len(batch["label"]), denoiser.size, denoiser.size, denoiser.channels)
    t_key, eps_key, level_key, noise_key = jax.random.split(key, 4)
    inputs = {name: batch[name] for name in ("image", MOMENTS, "label") if name in batch}
    # 1. Times, stratified over the batch: a lower variance of the loss than independent ones.
    u = stratified_times(t_key, shape[0])
    inputs |= times(u) if times else {"t": _training_times(denoiser.schedule, u)}
    # 2. Noise.
    inputs["eps"] = jax.random.normal(eps_key, shape)
    if denoiser.autoencoder is not None and samples_latents:
        # fold_in, not a fifth split: that would change the other four keys.
        inputs["latent_noise"] = jax.random.normal(jax.random.fold_in(key, 4), shape)
    # 3. The condition's level, uniform in [0, 1] (Imagen, section 2.4).
    if denoiser.low_size:
        level = jax.random.uniform(level_key, shape[:1])
        inputs["level"] = _training_times(denoiser.schedule, level)
        inputs["condition_noise"] = jax.random.normal(noise_key, shape)
    return inputs


def _training_times(schedule: Schedule, u: Float[Array, " b"]) -> Float[Array, " b"]:
    """Times from uniform numbers in [0, 1); those of its steps for a discrete schedule."""
    steps = schedule.num_train_timesteps
    return (jnp.floor(u * steps) + 1) / steps if steps else u


def image_losses(
    denoiser: Denoiser,
    loss: DiffusionLoss,
    variables: Variables,
    inputs: Inputs,
    text: Float[Array, "b n d"],
) -> Losses:
    """Losses of each image, see `DiffusionLoss`; latents have been through `encoded`."""
    x0, x_t, condition, level = noised(denoiser, inputs)
    variables = {name: value for name, value in variables.items() if name != AUTOENCODER}
    context = denoiser.context(variables, text, level)
    output = denoiser.predict(variables, x_t, inputs["t"], context, condition)
    return loss(denoiser, output, x_t, x0, inputs["eps"], inputs["t"])


def noised(denoiser: Denoiser, inputs: Inputs) -> Noised:
    """The images of `draw_inputs`, or their latents, with the noise drawn for them."""
    x0 = inputs["latents"] if denoiser.autoencoder else to_float(inputs["image"])
    x_t = add_noise(x0, inputs["eps"], denoiser.schedule.logsnr(inputs["t"]))
    if not denoiser.low_size:
        return Noised(x0, x_t, None, None)
    # Trained on block means of the targets, as if the stage before had drawn them.
    low = shrink(x0, denoiser.low_size)
    condition = denoiser.condition(low, inputs["condition_noise"], inputs["level"])
    return Noised(x0, x_t, condition, inputs["level"])


def encoded(denoiser: Denoiser, autoencoder: Variables | None, inputs: Inputs) -> Inputs:
    """Replaces a batch's images by latents; no `autoencoder` is needed for `MOMENTS`."""
    used = ("image", MOMENTS, "latent_noise")
    rest = {name: value for name, value in inputs.items() if name not in used}
    mean, logvar = _moments(denoiser, autoencoder, inputs)
    if "latent_noise" in inputs:
        # A draw from N(mean, exp(logvar)), as the auto-encoder was trained.
        mean = mean + jnp.exp(0.5 * logvar) * inputs["latent_noise"]
    return {**rest, "latents": mean}


def _moments(
    denoiser: Denoiser, autoencoder: Variables | None, inputs: Inputs
) -> tuple[Array, Array]:
    if MOMENTS in inputs:
        mean, logvar = jnp.split(inputs[MOMENTS].astype(jnp.float32), 2, axis=-1)
        return mean, logvar
    assert denoiser.autoencoder is not None and autoencoder is not None, "there are no latents"
    return encode_one_by_one(denoiser.autoencoder, autoencoder, to_float(inputs["image"]))


def shrink(images: Float[Array, "b h w c"], size: int) -> Float[Array, "b size size c"]:
    """Means of square blocks of pixels."""
    b, h, _, c = images.shape
    factor = h // size
    blocks = images.reshape(b, size, factor, size, factor, c)  # [b, size, f, size, f, c]
    return blocks.mean(axis=(2, 4))
