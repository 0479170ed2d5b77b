"""What a cascade draws, as pictures that a notebook displays."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from launch.errors import InputError
from launch.runtime.reports import image_grid
from launch.runtime.reports.image_grid import Picture

_COLUMNS = 8


def show(
    images: Sequence[Any] | np.ndarray,
    captions: Sequence[str] | None = None,
    columns: int | None = None,
) -> Picture:
    """A grid of images; the last line of a notebook's cell displays it.

    Args:
        images: uint8 [h, w, c] each, of any sizes, as `Cascade.sample` returns them; or its list of
            every stage's images, to be shown side by side.
        captions: one an image.
        columns: images a row; None is up to 8.

    Raises:
        InputError: no images, images of another kind, or another number of captions.
    """
    if len(images) and np.ndim(images[0]) == 4:
        stages = len(images)
        captions = captions and [caption for caption in captions for _ in range(stages)]
        images = [image for same in zip(*images, strict=True) for image in same]
        columns = stages * (columns or max(1, _COLUMNS // stages))
    for number, image in enumerate(images):
        if np.ndim(image) != 3 or image.dtype != np.uint8:
            kind = f"{np.asarray(image).dtype} {list(np.shape(image))}"
            raise InputError(f"image {number} must be uint8 [h, w, c], got {kind}")
    if not len(images):
        raise InputError("0 images: at least one is needed")
    if captions and len(captions) != len(images):
        raise InputError(f"{len(captions)} captions for {len(images)} images: one each is needed")
    columns = min(columns or _COLUMNS, len(images))
    figure = image_grid.grid(list(images), captions or [""] * len(images), columns)
    return Picture(image_grid.to_png(figure))


def film(
    steps: UInt8[np.ndarray, "steps n size size c"], captions: Sequence[str], moments: int = 8
) -> Picture:
    """The way from noise to each image, a row each, from the noisiest step to the last.

    Args:
        steps: what `Cascade.path` returns.
        captions: one an image.
        moments: how many steps are shown, evenly spaced.

    Raises:
        InputError: another number of captions.
    """
    rows = steps.shape[1]
    if len(captions) != rows:
        raise InputError(f"{len(captions)} captions for {rows} images: one each is needed")
    shown = np.linspace(0, len(steps) - 1, min(moments, len(steps))).round().astype(int)
    tiles = [steps[step, row] for row in range(rows) for step in shown]
    titles = [
        caption if not column else f"step {step + 1}"
        for caption in captions
        for column, step in enumerate(shown)
    ]
    return show(tiles, titles, len(shown))
