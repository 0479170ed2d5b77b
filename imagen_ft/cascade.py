"""Denoisers, stages, cascades: from prompts to images, one diffusion model after the other."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from imagen_ft import guidance, samplers
from imagen_ft.diffusion import add_noise, x0_from_eps
from imagen_ft.models.unet import Context, UNet
from imagen_ft.schedule import Schedule
from imagen_ft.text import TextEncoder, check_prompts
from launch.runtime.images import to_uint8

Image = Float[Array, "b h w c"]


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """One stage's network with the conventions that it is trained and sampled with.

    Attributes:
        model: the network.
        schedule: of the noise, of images and of low-resolution conditions alike.
        size: of the images, in pixels.
        low_size: of the low-resolution images it starts from; 0 for a base model.
        channels: of the images.
    """

    model: UNet
    schedule: Schedule
    size: int
    low_size: int
    channels: int

    def init(self, key: Key[Array, ""], text: Float[Array, "n d"]) -> dict[str, Any]:
        """New variables.

        Args:
            key: randomness.
            text: states of any prompt, for their shape.
        """
        channels = self.channels * (2 if self.low_size else 1)
        x = jnp.zeros((1, self.size, self.size, channels))
        level = jnp.zeros((1,)) if self.low_size else None
        return self.model.init(key, x, jnp.zeros((1,)), text[None], level)

    def shapes(self, text_shape: tuple[int, int]) -> dict[str, Any]:
        """Shapes of the variables; nothing is made."""
        return jax.eval_shape(self.init, jax.random.key(0), jnp.zeros(text_shape))

    def condition(
        self, low: Image, noise: Image, level: Float[Array, " b"]
    ) -> Float[Array, "b size size c"]:
        """Upsamples low-resolution images and noises them to a level.

        Noise-conditioning augmentation (Ho et al. 2021; Imagen, section 2.4).

        Args:
            low: low-resolution images in [-1, 1].
            noise: standard normal, of the shape of the result.
            level: in [0, 1]; 0 adds nothing.
        """
        shape = (low.shape[0], self.size, self.size, low.shape[-1])
        upsampled = jax.image.resize(low, shape, "bilinear")
        noised = add_noise(upsampled, noise, self.schedule.logsnr(level))
        return jnp.where(level[:, None, None, None] > 0, noised, upsampled)

    def context(
        self,
        variables: dict[str, Any],
        text: Float[Array, "b n d"],
        level: Float[Array, " b"] | None = None,
    ) -> Context:
        """What the network needs of the prompts, the same at every time.

        Args:
            variables: of the model.
            text: states of the prompts.
            level: what the condition was noised to, for super-resolution.
        """
        level = None if level is None else self.schedule.model_time(level)
        return self.model.apply(variables, text, level, method="context")

    def eps(
        self,
        variables: dict[str, Any],
        x_t: Image,
        t: Float[Array, " b"],
        context: Context,
        condition: Image | None = None,
    ) -> Image:
        """The network's prediction of the noise.

        Args:
            variables: of the model.
            x_t: noisy images.
            t: time in [0, 1].
            context: result of `context`.
            condition: result of `condition`, for super-resolution.
        """
        x = x_t if condition is None else jnp.concatenate([x_t, condition], axis=-1)
        time = self.schedule.model_time(t)
        return self.model.apply(variables, x, time, context, method="denoise")


@dataclasses.dataclass(frozen=True)
class Stage:
    """A denoiser with its way of sampling.

    Attributes:
        denoiser: the network.
        sampler: steps and variances.
        guidance_weight: 1 is none.
        threshold_percentile: see `guidance.threshold`.
        noise_augmentation: level of the low-resolution images' noise, in [0, 1].
    """

    denoiser: Denoiser
    sampler: samplers.Sampler
    guidance_weight: float
    threshold_percentile: float
    noise_augmentation: float

    @functools.partial(jax.jit, static_argnums=0)
    def sample(
        self,
        variables: dict[str, Any],
        keys: Key[Array, " b"],
        text: Float[Array, "b n d"],
        null_text: Float[Array, "1 n d"],
        low: Image | None = None,
    ) -> Image:
        """Draws one image a key, in [-1, 1]; with `low`, of what that shows."""
        denoiser, batch = self.denoiser, text.shape[0]
        shape = (denoiser.size, denoiser.size, denoiser.channels)
        condition, level = None, None
        if low is not None:
            level = jnp.full((batch,), self.noise_augmentation)
            # The sampler's steps count from 0; the condition's own noise is apart from theirs.
            draw = lambda key: jax.random.normal(jax.random.fold_in(key, 2**31 - 1), shape)  # noqa: E731
            condition = denoiser.condition(low, jax.vmap(draw)(keys), level)
        if self.guidance_weight != 1.0:
            twice = lambda a: None if a is None else jnp.concatenate([a, a])  # noqa: E731
            text = jnp.concatenate([text, jnp.broadcast_to(null_text, text.shape)])
            condition, level = twice(condition), twice(level)
        context = denoiser.context(variables, text, level)

        def denoise(x_t: Image, t: Float[Array, ""]) -> Image:
            def predict(x: Image) -> Image:
                return denoiser.eps(variables, x, jnp.full(x.shape[:1], t), context, condition)

            eps = guidance.guided_eps(predict, x_t, self.guidance_weight)
            x0 = x0_from_eps(x_t, eps, denoiser.schedule.logsnr(t))
            return guidance.threshold(x0, self.threshold_percentile)

        return samplers.sample(self.sampler, denoise, denoiser.schedule, keys, shape)


@dataclasses.dataclass(frozen=True)
class Cascade:
    """A base stage and the super-resolution stages behind it.

    Attributes:
        stages: in order of size.
        variables: of each stage.
        encoder: of the prompts.
        class_names: the prompts it was trained with.
        digests: of each stage's weights.
    """

    stages: tuple[Stage, ...]
    variables: tuple[dict[str, Any], ...]
    encoder: TextEncoder
    class_names: tuple[str, ...]
    digests: tuple[str, ...]

    def sample(
        self,
        prompts: Sequence[str],
        seed: int = 0,
        indices: Int[np.ndarray, " n"] | None = None,
        batch_size: int = 100,
        progress: Callable[[int], None] = lambda count: None,
    ) -> UInt8[np.ndarray, "n size size c"]:
        """Draws one image a prompt.

        Image n depends on the seed and its index alone, not on the batch it is drawn in.

        Args:
            prompts: one an image.
            seed: of the set of images.
            indices: which images of the set to draw; the first ones where it is None.
            batch_size: how many are drawn at a time.
            progress: told the number of images finished, after each batch.

        Returns:
            The images of the last stage, in [0, 255].
        """
        return self.sample_stages(prompts, seed, indices, batch_size, progress)[-1]

    def sample_stages(
        self,
        prompts: Sequence[str],
        seed: int = 0,
        indices: Int[np.ndarray, " n"] | None = None,
        batch_size: int = 100,
        progress: Callable[[int], None] = lambda count: None,
    ) -> list[UInt8[np.ndarray, "n size size c"]]:
        """As `sample`, but returns the images of every stage."""
        check_prompts(prompts, self.class_names)
        indices = np.arange(len(prompts)) if indices is None else np.asarray(indices)
        table, rows = np.unique(list(prompts), return_inverse=True)
        states, null = self.encoder.embed(table.tolist()), self.encoder.null()
        batches = []
        for first in range(0, len(prompts), batch_size):
            part = slice(first, first + batch_size)
            # One shape, one compilation: the last batch is filled up.
            count = len(indices[part])
            fill = (0, min(batch_size, len(prompts)) - count)
            text = states[np.pad(rows[part], fill)]
            batches.append(
                [out[:count] for out in self._batch(seed, np.pad(indices[part], fill), text, null)]
            )
            progress(count)
        return [np.concatenate(stage) for stage in zip(*batches, strict=True)]

    def _batch(
        self, seed: int, indices: np.ndarray, text: np.ndarray, null: np.ndarray
    ) -> list[np.ndarray]:
        images, low = [], None
        for number, (stage, variables) in enumerate(zip(self.stages, self.variables, strict=True)):
            key = jax.random.fold_in(jax.random.key(seed), number)
            keys = jax.vmap(lambda n, key=key: jax.random.fold_in(key, n))(jnp.asarray(indices))
            low = stage.sample(variables, keys, text, null, low)
            images.append(np.asarray(to_uint8(low)))
        return images
