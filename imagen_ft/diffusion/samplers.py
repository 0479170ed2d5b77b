"""Samplers: frozen dataclasses, each a `lax.scan` from noise to data."""

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Bool, Float, Key, PyTree

from imagen_ft.diffusion.forward_process import Image, add_noise, eps_from_x0, per_image, posterior
from imagen_ft.diffusion.schedule import Schedule, sampling_times
from launch.errors import InputError
from launch.runtime.limits import check_numbers
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
        last: whether s is 0, where nothing is left to draw.
    """

    t: Float[Array, ""]
    s: Float[Array, ""]
    logsnr_t: Float[Array, ""]
    logsnr_s: Float[Array, ""]
    last: Bool[Array, ""]


@runtime_checkable
class Sampler(Protocol):
    """From noise to data over a scan, whose carry is the sampler's own.

    A solver with a memory keeps earlier predictions in the carry; one of second order calls the
    network more than once in a step.
    """

    num_steps: int
    spacing: str

    @property
    def needs_learned_variance(self) -> bool:
        """Whether the network has to predict `Prediction.logvar_coeff`."""

    def initialise(self, x: Image) -> Carry:
        """The carry of the first step, which begins with the images `x`."""

    def step(
        self, carry: Carry, denoise: Denoise, noise: Image, interval: Interval
    ) -> tuple[Carry, Prediction]:
        """Takes one step; returns the next carry and the prediction that stands for this step."""

    def finalise(self, carry: Carry) -> Image:
        """The images, from the carry of the last step."""


class SingleStep(abc.ABC):
    """Samplers whose next images follow from the present ones and one prediction."""

    num_steps: int
    spacing: str

    @property
    def needs_learned_variance(self) -> bool:
        """See `Sampler`."""
        return False

    def initialise(self, x: Image) -> Image:
        """See `Sampler`."""
        return x

    def step(
        self, carry: Image, denoise: Denoise, noise: Image, interval: Interval
    ) -> tuple[Image, Prediction]:
        """See `Sampler`."""
        prediction = denoise(carry, interval.t)
        x_s = self.update(carry, prediction, noise, interval.logsnr_t, interval.logsnr_s)
        return jnp.where(interval.last, prediction.x0, x_s), prediction

    def finalise(self, carry: Image) -> Image:
        """See `Sampler`."""
        return carry

    @abc.abstractmethod
    def update(
        self,
        x_t: Image,
        prediction: Prediction,
        noise: Image,
        logsnr_t: Float[Array, ""],
        logsnr_s: Float[Array, ""],
    ) -> Image:
        """Draws x_s, given x_t and the prediction of x_0."""


@dataclasses.dataclass(frozen=True)
class DDPM(SingleStep):
    """Ancestral sampling (Ho et al. 2020), with the variance of Nichol and Dhariwal's Eq. 15.

    Attributes:
        num_steps: network evaluations.
        logvar_coeff: 0 for the small, 1 for the large variance; None for the one that the network
            has learned.
        spacing: see `schedule.sampling_times`.
    """

    num_steps: int
    logvar_coeff: float | Float[Array, ""] | None = 0.0
    spacing: str = "trailing"

    @property
    def needs_learned_variance(self) -> bool:
        """Where the variance is the network's."""
        return self.logvar_coeff is None

    def update(
        self,
        x_t: Image,
        prediction: Prediction,
        noise: Image,
        logsnr_t: Float[Array, ""],
        logsnr_s: Float[Array, ""],
    ) -> Image:
        """See `SingleStep`."""
        coeff = self.logvar_coeff if not self.needs_learned_variance else prediction.logvar_coeff
        assert coeff is not None, "the network has learned no variance"
        mean, log_variance = posterior(x_t, prediction.x0, logsnr_t, logsnr_s, coeff)
        return mean + jnp.exp(0.5 * log_variance) * noise


@dataclasses.dataclass(frozen=True)
class DDIM(SingleStep):
    """Implicit sampling (Song et al. 2021, Eq. 12); eps is that of the thresholded x_0.

    Attributes:
        num_steps: network evaluations.
        eta: 0 is deterministic, 1 has the small variance of DDPM.
        spacing: see `schedule.sampling_times`.
    """

    num_steps: int
    eta: float | Float[Array, ""] = 0.0
    spacing: str = "trailing"

    def update(
        self,
        x_t: Image,
        prediction: Prediction,
        noise: Image,
        logsnr_t: Float[Array, ""],
        logsnr_s: Float[Array, ""],
    ) -> Image:
        """See `SingleStep`."""
        _, log_variance = posterior(x_t, prediction.x0, logsnr_t, logsnr_s)
        variance = self.eta**2 * jnp.exp(log_variance)
        alpha_s = jnp.sqrt(jax.nn.sigmoid(per_image(logsnr_s)))
        direction = jnp.sqrt(jnp.maximum(jax.nn.sigmoid(-per_image(logsnr_s)) - variance, 0.0))
        eps = eps_from_x0(x_t, prediction.x0, logsnr_t)
        return alpha_s * prediction.x0 + direction * eps + jnp.sqrt(variance) * noise


def _make_ddpm(config: ml_collections.ConfigDict, spacing: str) -> DDPM:
    learned = config.logvar_coeff == "learned"
    coeff = None if learned else _fraction("logvar_coeff", config.logvar_coeff)
    return DDPM(config.num_steps, coeff, spacing)


def _make_ddim(config: ml_collections.ConfigDict, spacing: str) -> DDIM:
    return DDIM(config.num_steps, _fraction("eta", config.eta), spacing)


_MOST_STEPS = 10**6
_MAKERS = {"ddpm": _make_ddpm, "ddim": _make_ddim}


def make_sampler(config: ml_collections.ConfigDict) -> Sampler:
    """Builds a sampler from `name` ('ddpm', 'ddim') and its own fields.

    `logvar_coeff` may be 'learned'; `spacing` is 'trailing' where it is missing.

    Raises:
        InputError: an unknown name, a number of steps below 1, a strength of the noise outside
            [0, 1].
    """
    check_numbers(config, {"num_steps": (1, _MOST_STEPS)}, "sampler")
    if config.name not in _MAKERS:
        names = ", ".join(map(repr, _MAKERS))
        raise InputError(f"sampler.name={config.name!r}: known are {names}")
    return _MAKERS[config.name](config, config.get("spacing", "trailing"))


def _fraction(name: str, value: float | str) -> float:
    # Where a config says 'learned', the command line can put no number, but its digits.
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0.0 <= number <= 1.0:
        raise InputError(f"sampler.{name}={value!r}: a number in [0, 1] is needed")
    return number


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
    times = sampling_times(schedule, sampler.num_steps, sampler.spacing)
    steps = np.arange(sampler.num_steps, 0, -1)[skip_steps:]

    def body(carry: Carry, at: tuple[Array, Array, Array]) -> tuple[Carry, Image | None]:
        step, t, s = at
        interval = Interval(t, s, schedule.logsnr(t), schedule.logsnr(s), step == 1)
        carry, prediction = sampler.step(carry, denoise, noise(step), interval)
        return carry, prediction.x0 if path else None

    x = noise(jnp.zeros((), jnp.int32))
    if start is not None:
        x = add_noise(start, x, schedule.logsnr(jnp.asarray(times[skip_steps])))
    intervals = steps, times[skip_steps:-1], times[skip_steps + 1 :]
    carry, predictions = jax.lax.scan(body, sampler.initialise(x), intervals)
    return sampler.finalise(carry), predictions
