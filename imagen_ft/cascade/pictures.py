"""Images of a cascade as pictures that a notebook displays."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from imagen_ft.cascade import values
from launch.errors import InputError
from launch.runtime.reports import image_grid
from launch.runtime.reports.image_grid import Picture

_COLUMNS = 8


def show(
    images: Sequence[Any] | np.ndarray,
    captions: Sequence[str] | None = None,
    columns: int | None = None,
) -> Picture:
    """A grid of images; as the last line of a notebook's cell it is displayed.

    `images` are uint8 [h, w, c] each, of any sizes, as `Cascade.sample` returns them; or its list
    of every stage's images, shown side by side. `columns` are images per row, by default up to 8.
    """
    # 1. The arguments.
    captions = None if captions is None else values.CAPTIONS.of("captions", captions)
    columns = None if columns is None else values.COUNT.of("columns", columns)
    # 2. One list of images.
    arrays = values.ARRAYS.of("images", images)
    if arrays and arrays[0].ndim == 4:
        # Every stage's images: [stages][n, h, w, c] to one list, image by image.
        stages = len(arrays)
        captions = captions and [caption for caption in captions for _ in range(stages)]
        arrays = [image for same in zip(*arrays, strict=True) for image in same]
        columns = stages * (columns or max(1, _COLUMNS // stages))
    _check(arrays)
    if captions and len(captions) != len(arrays):
        raise InputError(
            f"captions must have one string for each of {len(arrays)} images, got {len(captions)}"
        )
    # 3. The picture.
    columns = min(columns or _COLUMNS, len(arrays))
    figure = image_grid.grid(arrays, captions or [""] * len(arrays), columns)
    return Picture(image_grid.to_png(figure))


def grid(
    images: Sequence[UInt8[np.ndarray, "h w c"]] | UInt8[np.ndarray, "n h w c"],
    columns: int = _COLUMNS,
) -> UInt8[np.ndarray, "_h _w c"]:
    """Images of one size, [h, w, c] each, joined into one without captions; the rest is white."""
    arrays = values.ARRAYS.of("images", images)
    _check(arrays)
    shapes = {image.shape for image in arrays}
    if len(shapes) > 1:
        raise InputError(
            f"images must be uint8 [h, w, c], all of the same size, got {sorted(shapes)}"
        )
    columns = min(values.COUNT.of("columns", columns), len(arrays))
    rows = -(-len(arrays) // columns)
    height, width, channels = shapes.pop()
    # White tiles fill the last row.
    tiles = np.full((rows * columns, height, width, channels), 255, np.uint8)
    tiles[: len(arrays)] = arrays
    # [rows, h, columns, w, c]
    joined = tiles.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return joined.reshape(rows * height, columns * width, channels)


def to_pil(
    images: UInt8[np.ndarray, "h w c"]
    | Sequence[UInt8[np.ndarray, "_h _w _c"]]
    | UInt8[np.ndarray, "n h w c"],
) -> Any:
    """Pillow images of arrays: one for [h, w, c], otherwise a list; one channel is grey."""
    if not isinstance(images, list | tuple) and np.ndim(images) == 3:
        return _to_pil(np.asarray(images))
    arrays = values.ARRAYS.of("images", images)
    return [to_pil(array) if array.ndim > 3 else _to_pil(array) for array in arrays]


def _to_pil(image: np.ndarray) -> Image.Image:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise InputError(
            f"an image must be uint8 [h, w, 1 or 3], got {image.dtype} {list(image.shape)}"
        )
    return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


def film(
    steps: UInt8[np.ndarray, "steps n size size c"], captions: Sequence[str], moments: int = 8
) -> Picture:
    """The way from noise to each image, one row per image, from the noisiest step to the last.

    `steps` is what `Cascade.path` returns, of which `moments` are shown, evenly spaced.
    """
    steps = np.asarray(steps)
    if steps.dtype != np.uint8 or steps.ndim != 5:
        raise InputError(
            "steps must be uint8 [steps, n, size, size, c], as Cascade.path returns them, got "
            f"{steps.dtype} {list(steps.shape)}"
        )
    captions = values.CAPTIONS.of("captions", captions)
    moments = values.COUNT.of("moments", moments)
    rows = steps.shape[1]
    if len(captions) != rows:
        raise InputError(
            f"captions must have one string for each of {rows} images, got {len(captions)}"
        )
    # [steps, n, h, w, c] to one list of tiles, image by image.
    shown = np.linspace(0, len(steps) - 1, min(moments, len(steps))).round().astype(int)
    tiles = [steps[step, row] for row in range(rows) for step in shown]
    # The caption above the first tile of a row, step numbers above the others.
    titles = [
        caption if not column else f"step {step + 1}"
        for caption in captions
        for column, step in enumerate(shown)
    ]
    return show(tiles, titles, len(shown))


def _check(images: Sequence[np.ndarray]) -> None:
    for number, image in enumerate(images):
        if image.ndim != 3 or image.dtype != np.uint8:
            kind = f"{image.dtype} {list(image.shape)}"
            raise InputError(f"image {number} must be uint8 [h, w, c], got {kind}")
    if not images:
        raise InputError("there must be at least one image, got none")
