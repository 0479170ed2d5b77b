"""Checks that the stages' images are finite numbers."""

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
    """Yields the batches; raises Diverged instead where an image is not finite.

    Each batch comes with the flags (`images.finite_images`) of its images per stage that was run,
    in the order of `stages`; together the batches are the request, in its order.
    """
    # Number of the batch's first image in the request.
    first = 0
    for batch, finite in batches:
        # The first stage that left the finite numbers: those after it only enlarge the damage.
        for (name, stage), flags in zip(stages.items(), finite, strict=True):
            if not flags.all():
                # argmin of booleans: the first False.
                image = request.describe(first + int(np.argmin(flags)), class_names)
                others = len(flags) - int(flags.sum()) - 1
                more = f" and {others} more of its batch" if others else ""
                dtype = jnp.dtype(stage.denoiser.model.dtype).name
                raise Diverged(
                    f"stage {name} produced NaN or infinity for {image}{more}: its network "
                    f"overflows in {dtype}; check its weights, or set another stage.unet.dtype"
                )
        first += len(finite[0])
        yield batch
