"""Pictures of what a stage has learned: the same images, with the same noise, each time."""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Bool, Float
from matplotlib.figure import Figure

from imagen_ft.diffusion.from_config import make_alone
from imagen_ft.training.image_losses import shrink
from imagen_ft.training.images import TrainingImages, evaluation_transform
from imagen_ft.training.training import Training
from launch.cli import say
from launch.runtime.devices.mesh import replicate
from launch.runtime.images import finite_images, to_float, to_uint8
from launch.runtime.reports import image_grid
from launch.runtime.state import TrainState
from launch.runtime.types import Array, Variables


def make_pictures(
    training: Training,
    images: TrainingImages,
    mesh: Mesh,
    text_table: Float[np.ndarray, "classes n d"],
    null_text: Float[np.ndarray, "n d"],
    network: Callable[[Variables], Variables],
) -> Callable[[TrainState], Figure]:
    """Draws held-out images again: by their prompts, or in super-resolution from small versions.

    `config.pictures` has `count` and fields of `from_config.make_stage`. `network` makes of a
    state's variables those that the denoiser is called with.
    """
    # 1. Which images, evenly spaced over the held-out ones.
    config, denoiser, source = training.config, training.denoiser, images.evaluation
    stage, transform = make_alone(config.pictures, denoiser), evaluation_transform(training)
    indices = np.linspace(0, len(source) - 1, config.pictures.count).astype(int)
    examples = [transform(source[int(index)]) for index in indices]
    labels = np.array([example["label"] for example in examples])
    real = np.stack([example["image"] for example in examples])
    captions = [images.prompts[label] for label in labels]
    # 2. What stays the same each time is put on the devices once.
    text, null = replicate(mesh, text_table[labels]), replicate(mesh, null_text[None])
    low = np.asarray(shrink(to_float(real), denoiser.low_size)) if denoiser.low_size else None
    placed_low = None if low is None else replicate(mesh, low)

    @functools.partial(jax.jit, out_shardings=NamedSharding(mesh, P()))
    def draw(
        variables: Variables, text: Array, null: Array, low: Array | None
    ) -> tuple[Array, Array]:
        # The same keys at every step: pictures differ by the weights alone.
        keys = jax.random.split(training.evaluation_key, len(labels))
        drawn = stage.sample(variables, keys, text, null, low)
        return to_uint8(drawn), finite_images(drawn)

    # 3. The figure: for super-resolution three tiles per image.
    def figure(state: TrainState) -> Figure:
        variables = network(state.inference_variables)
        drawn, finite = map(np.asarray, draw(variables, text, null, placed_low))
        names = _marked(captions, finite, int(state.step))
        if low is None:
            return image_grid.grid(list(drawn), names, columns=min(8, len(drawn)))
        # Pixels are repeated, so that the small image fills its tile.
        began = np.asarray(to_uint8(low)).repeat(denoiser.size // denoiser.low_size, axis=1)
        began = began.repeat(denoiser.size // denoiser.low_size, axis=2)
        tiles = [image for three in zip(began, drawn, real, strict=True) for image in three]
        titles = [title for name in names for title in (name, "drawn", "real")]
        return image_grid.grid(tiles, titles, columns=6)

    return figure


def _marked(captions: Sequence[str], finite: Bool[np.ndarray, " n"], step: int) -> list[str]:
    """Captions that mark images that are not finite, as does a warning. Training continues."""
    if not finite.all() and jax.process_index() == 0:
        wrong = [caption for caption, sound in zip(captions, finite, strict=True) if not sound]
        say(
            f"warning: pictures of step {step}: {len(wrong)} of {len(captions)} have NaN or "
            f"infinity, the first is {wrong[0]!r}"
        )
    return [
        caption if sound else f"not finite: {caption}"
        for caption, sound in zip(captions, finite, strict=True)
    ]
