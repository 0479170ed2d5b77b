"""Denoisers, stages, cascades: from prompts to images, one diffusion model after the other."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, UInt8

from imagen_ft.stage import Stage
from imagen_ft.text import TextEncoder, check_prompts
from launch.runtime.images import to_uint8


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
