"""Sampling: what a sampler is, and the `lax.scan` that takes noise to data."""

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

# What a sampler remembers from step to step: any tree of arrays.
Carry: TypeAlias = PyTree


class Prediction(NamedTuple):
    """What a network says about x_t."""

    x0: Image  # the clean image
    # v of Nichol and Dhariwal 2021, Eq. 15, for each value; None where the variance is not learned.
    logvar_coeff: Image | None = None


# (x_t, t) -> prediction; one t for the whole batch.
Denoise = Callable[[Image, Float[Array, ""]], Prediction]
# (step) -> standard normal noise. Step 0 is what sampling starts from.
Noise = Callable[[int | Array], Image]


class Interval(NamedTuple):
    """One step of sampling, from time t to the earlier time s."""

    t: Float[Array, ""]
    s: Float[Array, ""]
    logsnr_t: Float[Array, ""]
    logsnr_s: Float[Array, ""]
    step: Int[Array, ""]  # counts down to 1
    schedule: Schedule  # for times inside the step

    @property
    def last(self) -> Bool[Array, ""]:
        """Whether the step ends at data, where there is nothing left to draw."""
        return self.s == 0


class Sampler(abc.ABC):
    """Takes noise to data over a scan; the carry is the sampler's own.

    A multistep solver keeps earlier predictions in the carry; a single-step solver of second order
    calls the network more than once per step.
    """

    # Steps, not network evaluations: Heun takes two per step.
    num_steps: int
    spacing: str  # see `spacing.sampling_times`
    logsnr_min: float = -math.inf  # noisier times are left out

    @property
    def needs_learned_variance(self) -> bool:
        """Whether the network must predict `Prediction.logvar_coeff`."""
        return False

    def times(self, schedule: Schedule) -> Float[np.ndarray, " {self.num_steps}+1"]:
        """Where the steps start and end, from the noisiest to 0; see `sampling_times`."""
        return sampling_times(schedule, self.num_steps, self.spacing, self.logsnr_min)

    def evaluation_times(self, schedule: Schedule) -> Float[np.ndarray, " evaluations"]:
        """When the network runs: once at each of these times, guidance not counted."""
        return self.times(schedule)[:-1]

    def initialise(self, x: Image) -> Carry:
        """The carry of the first step, which starts from the noise `x`."""
        return x

    @abc.abstractmethod
    def step(
        self, carry: Carry, denoise: Denoise, noise: Image, interval: Interval
    ) -> tuple[Carry, Prediction]:
        """Takes one step; returns the next carry and the prediction to show for this step."""

    def finalise(self, carry: Carry) -> Image:
        """The images in the carry of the last step."""
        return carry


def noise_of_keys(keys: Key[Array, " b"], shape: tuple[int, int, int]) -> Noise:
    """Noise that depends on an image's key and the step alone; `shape` is [h, w, c]."""

    def noise(step: int | Array) -> Image:
        # vmapped over keys, so an image draws the same noise in any batch and row.
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
    """Draws images; with `path` also every step's prediction of x_0, [steps, b, h, w, c].

    `start` replaces the noise: images noised to the time of the first step taken (real guidance, He
    et al. 2023, section 3.2 and appendix C.3). `skip_steps` at the noisiest end are not taken.
    """
    # 1. When: numpy values, known at compile time. Steps count down to 1; noise 0 is the start's.
    times = sampler.times(schedule)
    steps = np.arange(sampler.num_steps, 0, -1, dtype=np.int32)[skip_steps:]

    def body(carry: Carry, at: tuple[Array, Array, Array]) -> tuple[Carry, Image | None]:
        step, t, s = at
        interval = Interval(t, s, schedule.logsnr(t), schedule.logsnr(s), step, schedule)
        carry, prediction = sampler.step(carry, denoise, noise(step), interval)
        return carry, prediction.x0 if path else None

    # 2. Where from: noise, or images with noise.
    x = noise(jnp.zeros((), jnp.int32))
    if start is not None:
        x = add_noise(start, x, schedule.logsnr(jnp.asarray(times[skip_steps])))
    # 3. One compiled body for all steps, whatever their number.
    intervals = steps, times[skip_steps:-1], times[skip_steps + 1 :]
    carry, predictions = jax.lax.scan(body, sampler.initialise(x), intervals)
    return sampler.finalise(carry), predictions
