"""Cascades: from prompts to images, one diffusion model after the other."""

import contextlib
import dataclasses
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int, Key, UInt8

from imagen_ft.cascade.loading import load_stages
from imagen_ft.diffusion.stage import Stage
from imagen_ft.text import class_names
from imagen_ft.text.encoders import TextEncoder, check_prompts, make_text_encoder
from launch.errors import InputError
from launch.runtime.config import load_config
from launch.runtime.devices.mesh import fetch, put_split
from launch.runtime.images import to_float, to_uint8
from launch.runtime.types import Array

Images = UInt8[np.ndarray, "n size size c"]
Progress = Callable[[int], None]


def _silent(count: int) -> None:
    """No progress is shown."""


@dataclasses.dataclass(frozen=True)
class Cascade:
    """A base stage and the super-resolution stages behind it.

    Attributes:
        stages: in order of size.
        variables: of each stage.
        encoder: of the prompts.
        class_names: the prompts it was trained with; empty where any text will do.
        digests: of each stage's weights.
        batch_size: how many images are drawn at a time, unless a call or a stage has its own
            number.
        mesh: of the devices that draw together, each a part of a batch; all processes of a job
            then have to make the same calls. None is one device.
    """

    stages: tuple[Stage, ...]
    variables: tuple[dict[str, Any], ...]
    encoder: TextEncoder
    class_names: tuple[str, ...]
    digests: tuple[str, ...]
    batch_size: int = 100
    mesh: Mesh | None = None

    @classmethod
    def load(cls, config: str) -> "Cascade":
        """Loads the stages that a config of `imagen_ft.sample` names.

        Args:
            config: its file and arguments, such as 'configs/digits/sample.py'.

        Raises:
            InputError: see `load_cascade`.
        """
        return load_cascade(load_config(config))

    def sample(
        self,
        prompts: Sequence[str],
        seed: int = 0,
        indices: Int[np.ndarray, " n"] | None = None,
        batch_size: int | None = None,
        progress: Progress = _silent,
        start: Images | None = None,
        skip_steps: int = 0,
    ) -> Images:
        """Draws one image a prompt.

        Image n depends on the seed and its index alone, not on the batch it is drawn in.

        Args:
            prompts: one an image.
            seed: of the set of images.
            indices: which images of the set to draw; the first ones where it is None.
            batch_size: how many are drawn at a time, instead of the cascade's number.
            progress: told the number of images finished, after each batch.
            start: images of the base's size that it begins with, noised to the first step that is
                taken (real guidance, He et al. 2023); None begins with noise.
            skip_steps: steps of the base at the noisiest end that are not taken.

        Returns:
            The images of the last stage, in [0, 255].

        Raises:
            InputError: a prompt is no class name, or `start` does not fit the base.
        """
        options = dict(start=start, skip_steps=skip_steps)
        return self.sample_stages(prompts, seed, indices, batch_size, progress, **options)[-1]

    def sample_stages(
        self,
        prompts: Sequence[str],
        seed: int = 0,
        indices: Int[np.ndarray, " n"] | None = None,
        batch_size: int | None = None,
        progress: Progress = _silent,
        start: Images | None = None,
        skip_steps: int = 0,
    ) -> list[Images]:
        """As `sample`, but returns the images of every stage."""
        self._check_base()
        if not 0 <= skip_steps < self.stages[0].sampler.num_steps:
            raise InputError(
                f"skip_steps={skip_steps}: the base has {self.stages[0].sampler.num_steps} steps"
            )
        if start is not None:
            self._check_images(start, len(prompts), self.stages[0].denoiser.size, "start")
        return self._draw(0, prompts, seed, indices, batch_size, progress, None, start, skip_steps)

    def path(
        self, prompts: Sequence[str], seed: int = 0
    ) -> UInt8[np.ndarray, "steps n size size c"]:
        """How the base comes to the images that `sample` draws: its predictions, step by step."""
        self._check_base()
        check_prompts(prompts, self.class_names)
        if not len(prompts):
            raise InputError("0 prompts: at least one is needed")
        keys = _keys(seed, 0, np.arange(len(prompts)))
        text, null = self.encoder.embed(prompts), self.encoder.null()
        return np.asarray(to_uint8(self.stages[0].path(self.variables[0], keys, text, null)))

    def upsample(
        self,
        images: Images,
        prompts: Sequence[str],
        seed: int = 0,
        indices: Int[np.ndarray, " n"] | None = None,
        batch_size: int | None = None,
        progress: Progress = _silent,
    ) -> Images:
        """Draws given images at the size of the last stage.

        The stage that starts from images of this size is the first one; see `sample` for the rest.

        Raises:
            InputError: no stage does.
        """
        size = np.shape(images)[1] if np.ndim(images) == 4 else 0
        sizes = [stage.denoiser.low_size for stage in self.stages]
        if not size or size not in sizes:
            known = " or ".join(f"{low} px" for low in sizes if low) or "noise"
            shape = list(np.shape(images))
            raise InputError(f"images of shape {shape}: the stages start from {known}")
        self._check_images(images, len(prompts), size, "images")
        first = sizes.index(size)
        return self._draw(first, prompts, seed, indices, batch_size, progress, images)[-1]

    def _check_base(self) -> None:
        if self.stages[0].denoiser.low_size:
            raise InputError("this cascade has no base: give its images to upsample")

    def _check_images(self, images: Images, count: int, size: int, name: str) -> None:
        wanted = (count, size, size, self.stages[0].denoiser.channels)
        if np.shape(images) != wanted or np.asarray(images).dtype != np.uint8:
            found = f"{np.asarray(images).dtype} {list(np.shape(images))}"
            raise InputError(f"{name} is {found}: uint8 {list(wanted)} is needed, one a prompt")

    def _draw(
        self,
        first_stage: int,
        prompts: Sequence[str],
        seed: int,
        indices: np.ndarray | None,
        batch_size: int | None,
        progress: Progress,
        low: Images | None = None,
        start: Images | None = None,
        skip_steps: int = 0,
    ) -> list[Images]:
        check_prompts(prompts, self.class_names)
        indices = np.arange(len(prompts)) if indices is None else np.asarray(indices)
        batch_size = self.batch_size if batch_size is None else batch_size
        if not len(prompts) or len(indices) != len(prompts) or batch_size < 1:
            raise InputError(
                f"{len(prompts)} prompts, {len(indices)} indices, batch_size={batch_size}: at "
                "least one of each is needed, and an index for each prompt"
            )
        table, rows = np.unique(list(prompts), return_inverse=True)
        states = self.encoder.embed(table.tolist())
        given = {
            name: images for name, images in (("low", low), ("start", start)) if images is not None
        }
        batches = []
        for stages in self._batches(
            first_stage, states, rows, seed, indices, batch_size, given, skip_steps
        ):
            batches.append([fetch(images) for images in stages])
            progress(len(batches[-1][0]))
        return [np.concatenate(stage) for stage in zip(*batches, strict=True)]

    def draw_classes(
        self,
        labels: Int[np.ndarray, " n"],
        seed: int,
        indices: Int[np.ndarray, " n"],
        batch_size: int | None = None,
    ) -> Iterator[Images]:
        """Draws one image a label, of the class of that number, batch by batch.

        A batch is on its way while the one before it is used. See `sample` for the arguments.

        Yields:
            Images of the last stage, in [0, 255].
        """
        self._check_base()
        batch_size = self.batch_size if batch_size is None else batch_size
        states = self.encoder.embed(self.class_names)
        ahead = None
        for stages in self._batches(0, states, labels, seed, indices, batch_size):
            if ahead is not None:
                yield fetch(ahead)
            ahead = stages[-1]
        if ahead is not None:
            yield fetch(ahead)

    def _batches(
        self,
        first_stage: int,
        states: Float[np.ndarray, "prompts n d"],
        rows: Int[np.ndarray, " n"],
        seed: int,
        indices: Int[np.ndarray, " n"],
        batch_size: int,
        given: Mapping[str, Images] = types.MappingProxyType({}),
        skip_steps: int = 0,
    ) -> Iterator[list[Array]]:
        """The images of every stage, uint8, on the devices; none is waited for.

        Args:
            first_stage: to be run.
            states: of the prompts.
            rows: which of them each image has.
            seed: of the set of images.
            indices: of the images.
            batch_size: how many are drawn at a time.
            given: `low` and `start`, see `Stage.sample`, in [0, 255].
            skip_steps: see `sample`.
        """
        null, whole = self.encoder.null(), min(batch_size, len(rows))
        for first in range(0, len(rows), batch_size):
            part = slice(first, first + batch_size)
            inputs = {"text": states[rows[part]], "indices": indices[part]}
            inputs |= {name: to_float(jnp.asarray(images[part])) for name, images in given.items()}
            drawn = []
            for number in range(first_stage, len(self.stages)):
                images = self._run(number, inputs, null, seed, whole, skip_steps)
                drawn.append(to_uint8(images))
                # Only the base begins with images of its own size.
                inputs = {"text": inputs["text"], "indices": inputs["indices"], "low": images}
            yield drawn

    def _run(
        self,
        number: int,
        inputs: dict[str, Any],
        null: Array,
        seed: int,
        whole: int,
        skip_steps: int,
    ) -> Float[Array, "b size size c"]:
        """One stage; every batch is filled up to one size, so that one compilation will do."""
        stage, count = self.stages[number], len(inputs["indices"])
        size = min(stage.batch_size or whole, whole)
        if self.mesh is not None:
            ways = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
            size = -(-size // ways) * ways
        skip_steps = 0 if number else skip_steps
        images = []
        for first in range(0, count, size):
            part = {name: values[first : first + size] for name, values in inputs.items()}
            fill = size - len(part["indices"])
            part = {name: _filled(values, fill) for name, values in part.items()}
            part["keys"] = _keys(seed, number, part.pop("indices"))
            options = dict(null_text=null, skip_steps=skip_steps)
            with contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh):
                if self.mesh is not None:
                    part = put_split(self.mesh, part)
                drawn = stage.sample(self.variables[number], **part, **options)
            images.append(drawn[: size - fill])
        return jnp.concatenate(images)


def load_cascade(config: ml_collections.ConfigDict, mesh: Mesh | None = None) -> Cascade:
    """Loads the cascade of a config: its text encoder, its classes and its stages.

    Args:
        config: of the task; `stages` as for `loading.load_stages`.
        mesh: where the cascade is to be; None is one device.

    Raises:
        InputError: see `loading.load_stages`; or a cache of text states lacks a prompt.
    """
    encoder = make_text_encoder(config.text)
    names = class_names.resolve(config.class_names)
    encoder.embed(names)  # A prompt that a cache lacks is found before any work.
    stages, variables, digests = load_stages(config, encoder, mesh)
    return Cascade(
        stages, variables, encoder, names, digests, batch_size=config.batch_size, mesh=mesh
    )


def _keys(seed: int, stage: int, indices: np.ndarray) -> Key[Array, " n"]:
    """One an image: a function of the seed, the stage's number and the image's index alone."""
    key = jax.random.fold_in(jax.random.key(seed), stage)
    return jax.vmap(lambda n: jax.random.fold_in(key, n))(jnp.asarray(indices))


def _filled(values: Array, count: int) -> Array:
    """With rows of zeros behind."""
    pad = jnp.pad if isinstance(values, jax.Array) else np.pad
    return pad(values, ((0, count),) + ((0, 0),) * (values.ndim - 1)) if count else values
