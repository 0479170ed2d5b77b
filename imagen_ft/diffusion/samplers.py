"""Sampling: what a sampler is, and the `lax.scan` from noise to data."""

import abc
import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Key, PyTree

from imagen_ft.diffusion.forward_process import Image, add_noise
from imagen_ft.diffusion.schedule import Schedule
from imagen_ft.diffusion.spacing import sampling_times
from launch.runtime.types import Array

# What a sampler remembers from step to step: a tree of arrays.
Carry: TypeAlias = PyTree


class Prediction(NamedTuple):
    """What a network says of x_t.

    Attributes:
        x0: the clean image.
        logvar_coeff: learned mixing of log variances, of each value; None where it is not learned.
    """

    x0: Image
    logvar_coeff: Image | None = None


Denoise = Callable[[Image, Float[Array, ""]], Prediction]
# (step) -> standard normal noise; step 0 is what sampling starts from.
Noise = Callable[[int | Array], Image]


class Interval(NamedTuple):
    """One step of sampling, from time t to the earlier time s.

    Attributes:
        t: where it begins.
        s: where it ends.
        logsnr_t: of t.
        logsnr_s: of s.
        step: counts down to 1.
        schedule: of the noise, for times that are no ends of steps.
    """

    t: Float[Array, ""]
    s: Float[Array, ""]
    logsnr_t: Float[Array, ""]
    logsnr_s: Float[Array, ""]
    step: Int[Array, ""]
    schedule: Schedule

    @property
    def last(self) -> Bool[Array, ""]:
        """Whether s is 0, where nothing is left to draw."""
        return self.s == 0


class Sampler(abc.ABC):
    """From noise to data over a scan, whose carry is the sampler's own.

    A solver with a memory keeps earlier predictions in the carry; one of second order calls the
    network more than once in a step.

    Attributes:
        num_steps: how many steps it takes.
        spacing: see `spacing.sampling_times`.
        logsnr_min: noisier times are left out.
    """

    num_steps: int
    spacing: str
    logsnr_min: float = -math.inf

    @property
    def needs_learned_variance(self) -> bool:
        """Whether the network has to predict `Prediction.logvar_coeff`."""
        return False

    def times(self, schedule: Schedule) -> Float[np.ndarray, " {self.num_steps}+1"]:
        """Where its steps begin and end: from the noisiest to 0.

        Raises:
            InputError: see `spacing.sampling_times`.
        """
        return sampling_times(schedule, self.num_steps, self.spacing, self.logsnr_min)

    def evaluation_times(self, schedule: Schedule) -> Float[np.ndarray, " evaluations"]:
        """When the network is evaluated: once for each of these times, guidance aside."""
        return self.times(schedule)[:-1]

    def initialise(self, x: Image) -> Carry:
        """The carry of the first step, which begins with the images `x`."""
        return x

    @abc.abstractmethod
    def step(
        self, carry: Carry, denoise: Denoise, noise: Image, interval: Interval
    ) -> tuple[Carry, Prediction]:
        """Takes one step; returns the next carry and the prediction that stands for this step."""

    def finalise(self, carry: Carry) -> Image:
        """The images, from the carry of the last step."""
        return carry


def noise_of_keys(keys: Key[Array, " b"], shape: tuple[int, int, int]) -> Noise:
    """Noise of each image by its key and the step alone.

    Args:
        keys: one an image.
        shape: [h, w, c] of an image.
    """

    def noise(step: int | Array) -> Image:
        draw = lambda key: jax.random.normal(jax.random.fold_in(key, step), shape)  # noqa: E731
        return jax.vmap(draw)(keys)

    return noise


def sample(
    sampler: Sampler,
    denoise: Denoise,
    schedule: Schedule,
    noise: Noise,
    start: Image | None = None,
    skip_steps: int = 0,
    path: bool = False,
) -> tuple[Image, Float[Array, "steps b h w c"] | None]:
    """Draws images.

    Args:
        sampler: which step to take.
        denoise: (x_t, t) -> prediction.
        schedule: of the noise.
        noise: of each step, the last ones counting down to 1; see `noise_of_keys`.
        start: images to begin with, noised to the time of the first step that is taken (real
            guidance: He et al. 2023, section 3.3); None begins with noise.
        skip_steps: steps at the noisiest end that are not taken.
        path: whether the predictions of x_0 at every step are returned too.

    Returns:
        The images; the predictions [steps, b, h, w, c] or None.
    """
    times = sampler.times(schedule)
    steps = np.arange(sampler.num_steps, 0, -1, dtype=np.int32)[skip_steps:]

    def body(carry: Carry, at: tuple[Array, Array, Array]) -> tuple[Carry, Image | None]:
        step, t, s = at
        interval = Interval(t, s, schedule.logsnr(t), schedule.logsnr(s), step, schedule)
        carry, prediction = sampler.step(carry, denoise, noise(step), interval)
        return carry, prediction.x0 if path else None

    x = noise(jnp.zeros((), jnp.int32))
    if start is not None:
        x = add_noise(start, x, schedule.logsnr(jnp.asarray(times[skip_steps])))
    intervals = steps, times[skip_steps:-1], times[skip_steps + 1 :]
    carry, predictions = jax.lax.scan(body, sampler.initialise(x), intervals)
    return sampler.finalise(carry), predictions
