"""Grids of images with captions, as figures and PNG files."""

import dataclasses
import io
import textwrap
from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from launch.files import write_atomic

# Pixels per inch of every PNG.
DPI = 110


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG that notebooks display when it is the last expression of a cell."""

    png: bytes = dataclasses.field(repr=False)

    def _repr_png_(self) -> bytes:
        return self.png

    def save(self, path: epath.PathLike) -> None:
        """Writes the PNG file."""
        write_atomic(path, self.png)


def show(axes: Axes, image: UInt8[np.ndarray, "h w c"]) -> None:
    """Draws one image without interpolation or axes."""
    axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])


def grid(
    images: Sequence[UInt8[np.ndarray, "_h _w _c"]], captions: Sequence[str], columns: int
) -> Figure:
    """Images row by row, each with its caption above; sizes may differ, captions may be ''."""
    rows = -(-len(images) // columns)
    # Inches. A pixel of the largest image is at least one of the figure; small images are enlarged.
    cell = max(1.0, max(image.shape[0] for image in images) / DPI)
    figure = Figure(figsize=(cell * columns, (cell + 0.2) * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(images) :]:
        axis.axis("off")
    for axis, image, caption in zip(axes, images, captions, strict=False):
        show(axis, image)
        # About 14 letters of this size fit an inch; a caption has at most two lines.
        lines = textwrap.wrap(caption, int(14 * cell), max_lines=2, placeholder="…")
        # Prompts are plain text: a dollar sign starts no formula.
        axis.set_title("\n".join(lines), fontsize=9, pad=3, parse_math=False)
    return figure


def to_png(figure: Figure) -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, bbox_inches="tight")
    return buffer.getvalue()


def save_png(figure: Figure, path: epath.PathLike) -> None:
    """Writes a figure as a PNG file."""
    write_atomic(path, to_png(figure))
