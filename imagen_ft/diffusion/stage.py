"""One diffusion model of a cascade: a denoiser and how it is sampled."""

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
# What comes out; its size and channels may differ from what the sampler sees.
Stored = Float[Array, "b stored_h stored_w stored_c"]
StoredPath = Float[Array, "steps b stored_h stored_w stored_c"]
Start = Float[Array, "b image_h image_w image_c"]
Output = Float[Array, "b h w outputs"]
# Numbers of a stage by field name; those of its sampler as 'sampler.eta'.
Numbers = dict[str, Float[Array, ""]]
_OF_SAMPLER = "sampler."

# (t) -> states of the texts that a network is evaluated for.
Texts = Callable[[Float[Array, ""]], Float[Array, "rows n d"]]

# Folded into an image's key; steps count from 0 and never get here.
CONDITION_STEP = 2**31 - 1
# Where a stage's variables hold those of its guide and of its auto-encoder.
GUIDE, AUTOENCODER = "guide", "autoencoder"


@dataclasses.dataclass(frozen=True)
class Stage:
    """A denoiser and how it is sampled.

    `sample` takes the denoiser's variables; under `GUIDE` and `AUTOENCODER` those of the guide and
    the auto-encoder, where the stage has them.
    """

    denoiser: Denoiser
    sampler: samplers.Sampler
    # w of Imagen: 1 is no guidance, and the network runs once per step instead of twice. An array
    # is an input of the compiled program, see `split`.
    guidance_weight: float | Float[Array, ""]
    threshold_percentile: float  # see `guidance.threshold`
    # Noise level of the low-resolution images, in [0, 1].
    noise_augmentation: float | Float[Array, ""]
    threshold_maximum: float = float("inf")  # see `guidance.threshold`
    # Times, from and to, with guidance; elsewhere the network runs once (Kynkaanniemi et al. 2024).
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    batch_size: int = 0  # images at a time; 0 is the cascade's
    guidance_schedule: str = "constant"  # see `guidance.weight_at`
    guidance_rescale: float = 0.0  # see `guidance.rescaled`; 0 is off
    # Noise in the states of the prompts, see `guidance.anneal`; a scale of 0 is off.
    cads_scale: float = 0.0
    cads_interval: tuple[float, float] = (0.6, 0.9)
    cads_mix: float = 1.0
    # A weaker network that guidance leads away from, in place of no text (autoguidance).
    guide: Denoiser | None = None
    stored_size: int = 0  # pixels that finished images are resized to; 0: as drawn

    # self is static: stages are hashable, and each different one compiles its own program.
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
        """Draws one image per key, in [-1, 1]; an image's noise depends on its key alone.

        `null_text` is what stands for no text, one for all images or one each. A super-resolution
        stage enlarges `low`. `start` (images of the denoiser's `image_size`) and `skip_steps`: see
        `samplers.sample`. `numbers` replace the stage's own, see `split`.
        """
        options: dict[str, Any] = dict(start=start, skip_steps=skip_steps)
        stage = self if numbers is None else self._with(numbers)
        noises = stage._noise(keys), noise_of_text(keys, text)
        return stage.run(variables, noises[0], text, null_text, low, noises[1], **options)[0]

    @property
    def image_size(self) -> int:
        """Pixels each way of the images that come out."""
        return self.stored_size or self.denoiser.image_size

    @property
    def is_guided(self) -> bool:
        """Whether each step runs the network twice, or a guide beside it."""
        # A weight that is an array has no value while it is traced.
        return not isinstance(self.guidance_weight, float | int) or self.guidance_weight != 1.0

    @property
    def reads_null_text(self) -> bool:
        """Whether images depend on what stands for no text."""
        return self.is_guided and self.guide is None

    @property
    def evaluations(self) -> int:
        """Network evaluations for one image; guidance counts once more."""
        times = self.sampler.evaluation_times(self.denoiser.schedule)
        first, last = self.guidance_interval
        guided = (times >= first) & (times <= last) & self.is_guided
        return len(times) + int(guided.sum())

    def describe(self) -> str:
        """Sizes, sampler, steps and guidance, in a few words."""
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
        """A stage shared by all that need the same program, and this stage's numbers.

        `shared.sample(..., numbers=numbers)` draws what this stage does, up to rounding: stages
        that differ only in numbers compile once.
        """
        sampler: Any = self.sampler  # a dataclass, which its protocol cannot say
        # 1. The sampler's numbers.
        own = {
            field.name: getattr(sampler, field.name)
            for field in dataclasses.fields(sampler)
            # A field annotated as plain float decides about shapes or times, and stays in the
            # program.
            if field.type is not float and type(getattr(sampler, field.name)) is float
        }
        numbers = {f"{_OF_SAMPLER}{name}": number for name, number in own.items()}
        # 2. The stage's numbers. Guided or not is a different program, so a weight of 1 stays.
        numbers["noise_augmentation"] = self.noise_augmentation
        form: dict[str, Any] = {"noise_augmentation": 0.0}
        if self.is_guided:
            numbers["guidance_weight"] = self.guidance_weight
            form["guidance_weight"] = 2.0  # any but 1
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
        """`sample` with any noise and options of `samplers.sample`; CADS needs `text_noise`."""
        # 1. The condition: the low-resolution images, upsampled and noised.
        condition, level = None, None
        if low is not None:
            level = jnp.full((text.shape[0],), self.noise_augmentation)
            condition = self.denoiser.condition(low, noise(CONDITION_STEP), level)
        # 2. The network, guided, as (x_t, t) -> x_0.
        texts = self._texts(text, null_text, text_noise)
        denoise = self._make_denoise(variables, texts, condition, level)
        # 3. The start, which for latents is encoded (its mean).
        decoder = variables.get(AUTOENCODER, {})
        if start is not None:
            start, _ = self.denoiser.encode(decoder, start)
        options = dict(options, start=start)
        # 4. Sample.
        x0, path = samplers.sample(self.sampler, denoise, self.denoiser.schedule, noise, **options)
        # 5. Decode and resize. map, not vmap: one step's images are in memory at a time.
        finish = lambda x0: self._stored(self.denoiser.decode(decoder, x0))  # noqa: E731
        return finish(x0), None if path is None else jax.lax.map(finish, path)

    def _stored(self, images: Image) -> Stored:
        """Images at the size they are stored in, filtered before pixels are dropped."""
        # The next stage starts from these and expects [-1, 1], which neither an auto-encoder nor
        # the filter keeps by itself.
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
        """(t) -> states of the prompts, followed by those of no text where they are read."""

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
        """A network's output for the first rows of the texts and conditions."""
        context_at = lambda t: denoiser.context(variables, texts(t), level)  # noqa: E731
        # Without noise in the texts the context is the same at all steps: computed once.
        constant = None if self.cads_scale else context_at(jnp.zeros(()))

        def evaluate(x_t: Image, t: Float[Array, ""]) -> Output:
            context = context_at(t) if constant is None else constant
            # Outside the guidance interval x_t has half the rows: only the prompts' texts are used.
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
        # 1. The networks.
        denoiser, guided = self.denoiser, self.is_guided
        if self.reads_null_text:
            # One batch of twice the rows, prompts first: the two halves differ in the text alone.
            condition, level = jax.tree.map(lambda a: jnp.concatenate([a, a]), (condition, level))
        own = {name: variables[name] for name in variables if name not in (GUIDE, AUTOENCODER)}
        once = self._evaluate(denoiser, own, texts, condition, level)
        if guided and self.guide is not None:
            weaker = self._evaluate(self.guide, variables[GUIDE], texts, condition, level)

        # 2. The guided output.
        def twice(x_t: Image, t: Float[Array, ""]) -> Output:
            if self.guide is None:
                both = once(jnp.concatenate([x_t, x_t]), t)
                plain, other = both[: len(x_t)], both[len(x_t) :]
            else:
                plain, other = once(x_t, t), weaker(x_t, t)
            weight = guidance.weight_at(self.guidance_schedule, self.guidance_weight, t)
            channels, share = denoiser.channels, self.guidance_rescale
            return guidance.guide(plain, other, weight, channels, share)

        # 3. From the output to x_0 and the variance.
        def denoise(x_t: Image, t: Float[Array, ""]) -> samplers.Prediction:
            if guided and self.guidance_interval != (0.0, 1.0):
                first, last = self.guidance_interval
                # cond, not where: outside the interval the second evaluation is skipped.
                output = jax.lax.cond((t >= first) & (t <= last), twice, once, x_t, t)
            else:
                output = (twice if guided else once)(x_t, t)
            output, variance = jnp.split(output, [denoiser.channels], axis=-1)
            logsnr = denoiser.schedule.logsnr(t)
            x0 = x0_from_output(output, x_t, logsnr, denoiser.prediction)
            if denoiser.autoencoder is None:  # latents have no range to keep
                x0 = guidance.threshold(x0, self.threshold_percentile, self.threshold_maximum)
            # The network's [-1, 1] spans the small to the large variance.
            return samplers.Prediction(x0, (variance + 1) / 2 if variance.shape[-1] else None)

        return denoise
