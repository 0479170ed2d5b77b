"""Many images as one for a page: faster to make, and smaller, than figures."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from input_pipeline.augment import resize

# Pixels: cells have _SMALL if all images fit, else _LARGE; _GAP is between cells.
_SMALL, _LARGE, _GAP = 64, 128, 4


def mosaic(
    images: Sequence[UInt8[np.ndarray, "_h _w _c"]], columns: int, gap_every: int = 0
) -> UInt8[np.ndarray, "h w 3"]:
    """Images row by row on white, each cropped to its central square.

    Takes at least one image, grey or colour, of any sizes. After every `gap_every` columns comes a
    wider gap; 0 is never.
    """
    # 1. One size of cells for all images, and the place of each column.
    side = _LARGE if max(min(image.shape[:2]) for image in images) > _SMALL else _SMALL
    rows = -(-len(images) // columns)
    lefts = [
        column * (side + _GAP) + (column // gap_every * 4 * _GAP if gap_every else 0)
        for column in range(columns)
    ]
    # 2. A white page; the last row and column have no gap behind them.
    page = np.full((rows * (side + _GAP) - _GAP, lefts[-1] + side, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (side + _GAP), lefts[i % columns]
        page[top : top + side, left : left + side] = _cell(image, side)
    return page


def _cell(image: UInt8[np.ndarray, "h w c"], side: int) -> UInt8[np.ndarray, "side side _c"]:
    smaller = min(image.shape[:2])
    # Repeating shows small images as they are; resizing would blur them.
    if image.shape[0] == image.shape[1] and side % smaller == 0:
        return image.repeat(side // smaller, axis=0).repeat(side // smaller, axis=1)
    return resize.square(image, side)
