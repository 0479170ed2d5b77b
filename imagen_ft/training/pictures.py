"""Pictures of what a stage has learned so far: the same images, with the same noise, each time."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from imagen_ft.diffusion.denoiser import Denoiser
from imagen_ft.diffusion.from_config import make_stage
from imagen_ft.training.update import EVALUATION, shrink
from input_pipeline import sources
from input_pipeline.batches import loader
from launch.runtime.devices.mesh import replicate
from launch.runtime.images import to_float, to_uint8
from launch.runtime.reports import image_grid
from launch.runtime.state import TrainState


def make_pictures(
    config: ml_collections.ConfigDict,
    denoiser: Denoiser,
    mesh: Mesh,
    names: Sequence[str],
    text_table: Float[np.ndarray, "classes n d"],
    null_text: Float[np.ndarray, "n d"],
    transform: loader.Transform,
) -> Callable[[TrainState], Figure]:
    """What draws them: a base by its prompts; of super-resolution also what it began with.

    Args:
        config: `seed`, `evaluation_source`, and `pictures`: `count` and the fields of
            `from_config.make_stage`.
        denoiser: the network.
        mesh: where the state lives.
        names: of the classes.
        text_table: states of every class's prompt.
        null_text: states that stand for no text.
        transform: brings images to size.

    Raises:
        InputError: wrong sampler settings.
    """
    source, stage = sources.load(config.evaluation_source), make_stage(config.pictures, denoiser)
    places = np.linspace(0, len(source) - 1, config.pictures.count).astype(int)
    examples = [transform(source[int(place)]) for place in places]
    labels = np.array([example["label"] for example in examples])
    real = np.stack([example["image"] for example in examples])
    captions = [names[label] for label in labels]
    text, null = replicate(mesh, text_table[labels]), replicate(mesh, null_text[None])
    low = np.asarray(shrink(to_float(real), denoiser.low_size)) if denoiser.low_size else None
    placed_low = None if low is None else replicate(mesh, low)

    @functools.partial(jax.jit, out_shardings=NamedSharding(mesh, P()))
    def draw(variables: dict[str, Any], text: Array, null: Array, low: Array | None) -> Array:
        key = jax.random.fold_in(jax.random.key(config.seed), EVALUATION)
        keys = jax.random.split(key, len(labels))
        return to_uint8(stage.sample(variables, keys, text, null, low))

    def figure(state: TrainState) -> Figure:
        drawn = np.asarray(draw(state.inference_variables, text, null, placed_low))
        if low is None:
            return image_grid.grid(drawn, captions, columns=min(8, len(drawn)))
        began = np.asarray(to_uint8(low)).repeat(denoiser.size // denoiser.low_size, axis=1)
        began = began.repeat(denoiser.size // denoiser.low_size, axis=2)
        rows = zip(began, drawn, real, captions, strict=True)
        images = [image for *three, _ in rows for image in three]
        names = [(name, "drawn", "real") for name in captions]
        return image_grid.grid(images, [name for three in names for name in three], columns=6)

    return figure
