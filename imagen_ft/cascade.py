"""Stages and cascades: from prompts to images, one diffusion model after the other."""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from imagen_ft import guidance, samplers
from imagen_ft.diffusion import add_noise, x0_from_eps
from imagen_ft.models.unet import UNet
from imagen_ft.schedule import Schedule, make_schedule
from imagen_ft.text import TextEncoder, check_prompts, make_text_encoder
from input_pipeline.files import InputError
from launch.runtime import checkpoint
from launch.runtime.app import load_run_config

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

    def eps(
        self,
        variables: dict[str, Any],
        x_t: Image,
        t: Float[Array, " b"],
        text: Float[Array, "b n d"],
        condition: Image | None = None,
        level: Float[Array, " b"] | None = None,
    ) -> Image:
        """The network's prediction of the noise.

        Args:
            variables: of the model.
            x_t: noisy images.
            t: time in [0, 1].
            text: states of the prompts.
            condition: result of `condition`, for super-resolution.
            level: what it was noised to.
        """
        time = self.schedule.model_time(t)
        if condition is None:
            return self.model.apply(variables, x_t, time, text)
        x = jnp.concatenate([x_t, condition], axis=-1)
        return self.model.apply(variables, x, time, text, self.schedule.model_time(level))


def make_denoiser(config: ml_collections.ConfigDict) -> Denoiser:
    """Builds a denoiser from `size`, `low_size`, `channels`, `schedule`, `unet` (fields of `UNet`).

    Raises:
        InputError: unknown schedule.
    """
    fields = {
        name: tuple(value) if isinstance(value, list | tuple) else value
        for name, value in config.unet.items()
    }
    fields["dtype"] = jnp.dtype(fields.get("dtype", "float32"))
    model = UNet(out_channels=config.channels, noise_level=config.low_size > 0, **fields)
    schedule = make_schedule(config.schedule)
    return Denoiser(model, schedule, config.size, config.low_size, config.channels)


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
        null_text = jnp.broadcast_to(null_text, text.shape)
        condition, level = None, jnp.full((batch,), self.noise_augmentation)
        if low is not None:
            # The sampler's steps count from 0; the condition's own noise is apart from theirs.
            draw = lambda key: jax.random.normal(jax.random.fold_in(key, 2**31 - 1), shape)  # noqa: E731
            condition = denoiser.condition(low, jax.vmap(draw)(keys), level)

        def denoise(x_t: Image, t: Float[Array, ""]) -> Image:
            times = jnp.full((batch,), t)
            # A doubled batch (guidance) sees everything but the text twice.
            tile = lambda a, like: jnp.tile(a, (like.shape[0] // batch,) + (1,) * (a.ndim - 1))  # noqa: E731

            def predict(x: Image, states: Array) -> Image:
                low_inputs = () if condition is None else (tile(condition, x), tile(level, x))
                return denoiser.eps(variables, x, tile(times, x), states, *low_inputs)

            eps = guidance.guided_eps(predict, x_t, text, null_text, self.guidance_weight)
            x0 = x0_from_eps(x_t, eps, denoiser.schedule.logsnr(times))
            return guidance.threshold(x0, self.threshold_percentile)

        return samplers.sample(self.sampler, denoise, denoiser.schedule, keys, shape)


def make_stage(config: ml_collections.ConfigDict, denoiser: Denoiser) -> Stage:
    """Builds a stage from the fields of `Stage`; a base needs no `noise_augmentation`.

    Raises:
        InputError: an unknown sampler, a level outside [0, 1].
    """
    level = config.get("noise_augmentation", 0.0)
    if not 0.0 <= level <= 1.0:
        raise InputError(f"noise_augmentation={level}: a level is in [0, 1]")
    return Stage(
        denoiser,
        samplers.make_sampler(config.sampler),
        config.guidance_weight,
        config.threshold_percentile,
        level,
    )


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


@jax.jit
def to_uint8(images: Image) -> UInt8[Array, "b h w c"]:
    """[-1, 1] to [0, 255], rounded."""
    return jnp.round(jnp.clip(images * 127.5 + 127.5, 0, 255)).astype(jnp.uint8)


def load_cascade(config: ml_collections.ConfigDict) -> Cascade:
    """Loads the stages that `config.stages` names, each from its run directory (`run`).

    Raises:
        InputError: a run is missing, unfinished or damaged, was made with another network, text
            encoder or list of classes than the config says, or the stages do not fit together.
    """
    encoder = make_text_encoder(config.text)
    denoisers = stage_denoisers(config)
    variables, digests = [], []
    for name, denoiser in denoisers.items():
        entry = config.stages[name]
        run = load_run_config(entry.run)
        for field, expected in (
            ("stage", entry.stage),
            ("text", config.text),
            ("class_names", config.class_names),
        ):
            if _as_json(run[field]) != _as_json(expected):
                raise InputError(f"{entry.run} was trained with another {field} than the config's")
        abstract = jax.eval_shape(denoiser.init, jax.random.key(0), jnp.zeros(encoder.shape))
        restored, step = checkpoint.load_inference(entry.run, abstract)
        if step < run.total_steps:
            raise InputError(
                f"{entry.run} has come to step {step} of {run.total_steps}: finish its training"
            )
        variables.append(restored)
        digests.append(checkpoint.digest(entry.run, step))
    stages = tuple(make_stage(config.stages[name], denoisers[name]) for name in denoisers)
    names = tuple(config.class_names)
    return Cascade(stages, tuple(variables), encoder, names, tuple(digests))


def stage_denoisers(config: ml_collections.ConfigDict) -> dict[str, Denoiser]:
    """The networks of `config.stages` by name, in order of size.

    Raises:
        InputError: a stage starts from another size than the one before it makes.
    """
    denoisers = {name: make_denoiser(entry.stage) for name, entry in config.stages.items()}
    ordered = dict(sorted(denoisers.items(), key=lambda item: item[1].size))
    size = 0
    for name, denoiser in ordered.items():
        if denoiser.low_size != size:
            raise InputError(
                f"config.stages.{name} starts from {denoiser.low_size} px, "
                f"the stage before it makes {size} px"
            )
        size = denoiser.size
    return ordered


def parameter_shapes(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Shapes of the parameters of every stage and of the text encoder; nothing is loaded."""
    encoder = make_text_encoder(config.text)
    text = jnp.zeros(encoder.shape)
    shapes = {
        name: jax.eval_shape(denoiser.init, jax.random.key(0), text)["params"]
        for name, denoiser in stage_denoisers(config).items()
    }
    return {**shapes, "text_encoder": encoder.parameters()}


def _as_json(value: Any) -> Any:
    """Configs read back from a run have lists where the file had tuples."""
    return json.loads(ml_collections.ConfigDict({"value": value}).to_json())
