"""Whether the stages stayed among the finite numbers."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from imagen_ft.cascade.request import Request
from imagen_ft.diffusion.stage import Stage
from launch.errors import Diverged


def checked(
    batches: Iterable[tuple[Any, Sequence[Bool[np.ndarray, " b"]]]],
    stages: dict[str, Stage],
    request: Request,
    class_names: Sequence[str],
) -> Iterator[Any]:
    """Batches, each after a look at what `images.finite_images` says of it.

    Args:
        batches: each with the flags of its images for every stage that was run, in their order.
        stages: that were run, by name.
        request: that the batches are of, in its order.
        class_names: of the cascade.

    Raises:
        Diverged: an image is not finite; names it, its prompt and the first such stage.
    """
    first = 0
    for batch, finite in batches:
        for (name, stage), flags in zip(stages.items(), finite, strict=True):
            if not flags.all():
                image = request.describe(first + int(np.argmin(flags)), class_names)
                others = len(flags) - int(flags.sum()) - 1
                more = f" and {others} more of its batch" if others else ""
                dtype = jnp.dtype(stage.denoiser.model.dtype).name
                raise Diverged(
                    f"stage {name} drew NaN or infinity for {image}{more}: its network "
                    f"overflows in {dtype}; check its weights, or set another "
                    "stage.unet.dtype"
                )
        first += len(finite[0])
        yield batch
