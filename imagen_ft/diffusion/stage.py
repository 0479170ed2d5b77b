"""One diffusion model of a cascade: its network and conventions, and its way of sampling."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Key

from imagen_ft.diffusion import guidance, samplers
from imagen_ft.diffusion.denoiser import Denoiser
from imagen_ft.diffusion.forward_process import Image, x0_from_output
from imagen_ft.diffusion.text_noise import TextNoise, annealed, noise_of_text
from launch.runtime.types import Array, Variables

LowImage = Float[Array, "b low_h low_w c"]
# What comes out, which may be of another size than what the sampler sees, and in other channels.
Stored = Float[Array, "b stored_h stored_w stored_c"]
StoredPath = Float[Array, "steps b stored_h stored_w stored_c"]
Start = Float[Array, "b image_h image_w image_c"]
Output = Float[Array, "b h w outputs"]
# Of a stage, by the name of its field, or of its sampler's: 'sampler.eta'.
Numbers = dict[str, Float[Array, ""]]
_OF_SAMPLER = "sampler."

# (t) -> states of the texts that a network is evaluated for.
Texts = Callable[[Float[Array, ""]], Float[Array, "rows n d"]]

# The noise of the condition is apart from the steps', which count from 0.
CONDITION_STEP = 2**31 - 1
# Of a stage's variables, those of its guide and of what makes images of its latents.
GUIDE, AUTOENCODER = "guide", "autoencoder"


@dataclasses.dataclass(frozen=True)
class Stage:
    """A denoiser with its way of sampling.

    Attributes:
        denoiser: the network.
        sampler: steps and variances.
        guidance_weight: 1 is none; an array is a weight that is an input of the program.
        threshold_percentile: see `guidance.threshold`.
        noise_augmentation: level of the low-resolution images' noise, in [0, 1].
        threshold_maximum: see `guidance.threshold`.
        guidance_interval: the times, from and to, at which there is guidance; at others the
            network runs once (Kynkaanniemi et al. 2024).
        batch_size: images at a time; 0 is as many as the cascade takes.
        guidance_schedule: how the weight goes with time, see `guidance.weight_at`.
        guidance_rescale: see `guidance.rescaled`; 0 is none.
        cads_scale: noise of the prompts' states, see `guidance.anneal`; 0 is none.
        cads_interval: the times between which it goes.
        cads_mix: see `guidance.anneal`.
        guide: a weaker network that guidance leads away from, in place of no text (autoguidance);
            its variables are those of the stage under the name `GUIDE`.
        stored_size: what images are brought to when they are done, in pixels; 0 is as drawn.

    The variables of the denoiser's auto-encoder, where it has one, are those of the stage under the
    name `AUTOENCODER`.
    """

    denoiser: Denoiser
    sampler: samplers.Sampler
    guidance_weight: float | Float[Array, ""]
    threshold_percentile: float
    noise_augmentation: float | Float[Array, ""]
    threshold_maximum: float = float("inf")
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    batch_size: int = 0
    guidance_schedule: str = "constant"
    guidance_rescale: float = 0.0
    cads_scale: float = 0.0
    cads_interval: tuple[float, float] = (0.6, 0.9)
    cads_mix: float = 1.0
    guide: Denoiser | None = None
    stored_size: int = 0

    @functools.partial(jax.jit, static_argnums=0, static_argnames="skip_steps")
    def sample(
        self,
        variables: Variables,
        keys: Key[Array, " b"],
        text: Float[Array, "b n d"],
        null_text: Float[Array, "#b n d"],
        low: LowImage | None = None,
        start: Start | None = None,
        skip_steps: int = 0,
        numbers: Numbers | None = None,
    ) -> Stored:
        """Draws one image a key, in [-1, 1].

        Args:
            variables: of the network.
            keys: one an image; the image's noise depends on it alone.
            text: states of the prompts.
            null_text: states that stand for no text, of all images or of each.
            low: for super-resolution, what the images show.
            start: images to begin with, of the denoiser's `image_size`; see `samplers.sample`.
            skip_steps: see `samplers.sample`.
            numbers: take the place of the stage's own, see `split`.
        """
        options: dict[str, Any] = dict(start=start, skip_steps=skip_steps)
        stage = self if numbers is None else self._with(numbers)
        noises = stage._noise(keys), noise_of_text(keys, text)
        return stage.run(variables, noises[0], text, null_text, low, noises[1], **options)[0]

    @property
    def image_size(self) -> int:
        """Of the images that come out, in pixels."""
        return self.stored_size or self.denoiser.image_size

    @property
    def is_guided(self) -> bool:
        """Whether the network runs twice, or another one beside it."""
        return not isinstance(self.guidance_weight, float | int) or self.guidance_weight != 1.0

    @property
    def reads_null_text(self) -> bool:
        """Whether images depend on what stands for no text."""
        return self.is_guided and self.guide is None

    @property
    def evaluations(self) -> int:
        """How often the network runs for one image; guidance counts as once more."""
        times = self.sampler.evaluation_times(self.denoiser.schedule)
        first, last = self.guidance_interval
        guided = (times >= first) & (times <= last) & self.is_guided
        return len(times) + int(guided.sum())

    def describe(self) -> str:
        """In a few words: sizes, sampler, steps and guidance."""
        sampler: Any = self.sampler
        low, size = self.denoiser.low_size, self.denoiser.image_size
        pixels = f"{low} to {size} px" if low else f"{size} px"
        if self.stored_size:
            pixels += f" stored at {self.stored_size}"
        name = type(sampler).__name__.lower()
        if hasattr(sampler, "order"):
            name = f"{name} (order {sampler.order})"
        guided = f", guidance {self.guidance_weight}" if self.is_guided else ""
        if guided and self.guide is not None:
            guided += " by a guide"
        return f"{pixels}, {name} of {sampler.num_steps} steps{guided}"

    def split(self) -> tuple["Stage", Numbers]:
        """A stage that all have which need the same program, and the numbers that this one has.

        `stage.sample(..., numbers=numbers)` of it draws what this one does, but for rounding.
        """
        sampler: Any = self.sampler  # a dataclass, which its protocol cannot say
        own = {
            field.name: getattr(sampler, field.name)
            for field in dataclasses.fields(sampler)
            # What may be an array as well says so.
            if field.type is not float and type(getattr(sampler, field.name)) is float
        }
        numbers = {f"{_OF_SAMPLER}{name}": number for name, number in own.items()}
        numbers["noise_augmentation"] = self.noise_augmentation
        form: dict[str, Any] = {"noise_augmentation": 0.0}
        if self.is_guided:
            numbers["guidance_weight"] = self.guidance_weight
            form["guidance_weight"] = 2.0  # Any but 1.
        form["sampler"] = dataclasses.replace(sampler, **dict.fromkeys(own, 0.0))
        inputs: Numbers = {name: np.asarray(x, np.float32) for name, x in numbers.items()}
        return dataclasses.replace(self, **form), inputs

    def _with(self, numbers: Numbers) -> "Stage":
        own: dict[str, Any] = dict(numbers)
        of_sampler = {
            name.removeprefix(_OF_SAMPLER): own.pop(name)
            for name in numbers
            if name.startswith(_OF_SAMPLER)
        }
        sampler: Any = self.sampler
        return dataclasses.replace(self, sampler=dataclasses.replace(sampler, **of_sampler), **own)

    @functools.partial(jax.jit, static_argnums=0, static_argnames="skip_steps")
    def path(
        self,
        variables: Variables,
        keys: Key[Array, " b"],
        text: Float[Array, "b n d"],
        null_text: Float[Array, "#b n d"],
        low: LowImage | None = None,
        start: Start | None = None,
        skip_steps: int = 0,
    ) -> StoredPath:
        """What `sample` predicts x_0 to be at each of its steps, in [-1, 1]."""
        options: dict[str, Any] = dict(start=start, skip_steps=skip_steps, path=True)
        noises = self._noise(keys), noise_of_text(keys, text)
        _, path = self.run(variables, noises[0], text, null_text, low, noises[1], **options)
        assert path is not None
        return path

    def run(
        self,
        variables: Variables,
        noise: samplers.Noise,
        text: Float[Array, "b n d"],
        null_text: Float[Array, "#b n d"],
        low: LowImage | None = None,
        text_noise: TextNoise | None = None,
        start: Start | None = None,
        **options: Any,
    ) -> tuple[Stored, StoredPath | None]:
        """As `sample`, with any noise and all options of `samplers.sample`.

        `text_noise` is needed where `cads_scale` is not 0.
        """
        condition, level = None, None
        if low is not None:
            level = jnp.full((text.shape[0],), self.noise_augmentation)
            condition = self.denoiser.condition(low, noise(CONDITION_STEP), level)
        texts = self._texts(text, null_text, text_noise)
        denoise = self._make_denoise(variables, texts, condition, level)
        decoder = variables.get(AUTOENCODER, {})
        if start is not None:
            start, _ = self.denoiser.encode(decoder, start)
        options = dict(options, start=start)
        x0, path = samplers.sample(self.sampler, denoise, self.denoiser.schedule, noise, **options)
        finish = lambda x0: self._stored(self.denoiser.decode(decoder, x0))  # noqa: E731
        return finish(x0), None if path is None else jax.lax.map(finish, path)

    def _stored(self, images: Image) -> Stored:
        """Images of the size that they are stored in, filtered before pixels are dropped.

        A stage behind this one starts from what is stored: in [-1, 1], which neither an
        auto-encoder nor the filter keeps.
        """
        size = self.image_size
        if self.denoiser.autoencoder is not None:
            images = guidance.threshold(images, 100.0)
        if images.shape[1] == size:
            return images
        shape = (len(images), size, size, images.shape[-1])
        resized = jax.image.resize(jnp.clip(images, -1.0, 1.0), shape, "cubic", antialias=True)
        return jnp.clip(resized, -1.0, 1.0)

    def _noise(self, keys: Key[Array, " b"]) -> samplers.Noise:
        size = self.denoiser.size
        return samplers.noise_of_keys(keys, (size, size, self.denoiser.channels))

    def _texts(self, text: Array, null_text: Array, noise: TextNoise | None) -> Texts:
        """(t) -> states of the prompts, behind them those of no text where these are read."""

        def texts(t: Float[Array, ""]) -> Float[Array, "rows n d"]:
            prompts = text
            if self.cads_scale:
                assert noise is not None, "cads_scale needs text_noise"
                annealing = self.cads_scale, self.cads_interval, self.cads_mix
                width = self.denoiser.pooled_width
                prompts = annealed(text, noise(t), t, *annealing, pooled_width=width)
            if not self.reads_null_text:
                return prompts
            return jnp.concatenate([prompts, jnp.broadcast_to(null_text, text.shape)])

        return texts

    def _evaluate(
        self,
        denoiser: Denoiser,
        variables: Variables,
        texts: Texts,
        condition: Image | None,
        level: Array | None,
    ) -> Callable[[Image, Float[Array, ""]], Output]:
        """A network's outputs, for the first of the texts and conditions."""
        context_at = lambda t: denoiser.context(variables, texts(t), level)  # noqa: E731
        # Without noise in the texts it is the same at all steps, and computed once.
        constant = None if self.cads_scale else context_at(jnp.zeros(()))

        def evaluate(x_t: Image, t: Float[Array, ""]) -> Output:
            context = context_at(t) if constant is None else constant
            context, low = jax.tree.map(lambda a: a[: len(x_t)], (context, condition))
            return denoiser.predict(variables, x_t, jnp.full(len(x_t), t), context, low)

        return evaluate

    def _make_denoise(
        self,
        variables: Variables,
        texts: Texts,
        condition: Image | None,
        level: Array | None,
    ) -> samplers.Denoise:
        denoiser, guided = self.denoiser, self.is_guided
        if self.reads_null_text:
            # A doubled batch sees everything but the text twice.
            condition, level = jax.tree.map(lambda a: jnp.concatenate([a, a]), (condition, level))
        own = {name: variables[name] for name in variables if name not in (GUIDE, AUTOENCODER)}
        once = self._evaluate(denoiser, own, texts, condition, level)
        if guided and self.guide is not None:
            weaker = self._evaluate(self.guide, variables[GUIDE], texts, condition, level)

        def twice(x_t: Image, t: Float[Array, ""]) -> Output:
            if self.guide is None:
                both = once(jnp.concatenate([x_t, x_t]), t)
                plain, other = both[: len(x_t)], both[len(x_t) :]
            else:
                plain, other = once(x_t, t), weaker(x_t, t)
            weight = guidance.weight_at(self.guidance_schedule, self.guidance_weight, t)
            channels, share = denoiser.channels, self.guidance_rescale
            return guidance.guide(plain, other, weight, channels, share)

        def denoise(x_t: Image, t: Float[Array, ""]) -> samplers.Prediction:
            if guided and self.guidance_interval != (0.0, 1.0):
                first, last = self.guidance_interval
                output = jax.lax.cond((t >= first) & (t <= last), twice, once, x_t, t)
            else:
                output = (twice if guided else once)(x_t, t)
            output, variance = jnp.split(output, [denoiser.channels], axis=-1)
            logsnr = denoiser.schedule.logsnr(t)
            x0 = x0_from_output(output, x_t, logsnr, denoiser.prediction)
            if denoiser.autoencoder is None:  # Latents have no range to be kept in.
                x0 = guidance.threshold(x0, self.threshold_percentile, self.threshold_maximum)
            # The network's -1 to 1 is the small to the large variance.
            return samplers.Prediction(x0, (variance + 1) / 2 if variance.shape[-1] else None)

        return denoise
