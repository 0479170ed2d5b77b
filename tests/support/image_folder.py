"""Folders of small pictures, and their bytes."""

import io

import numpy as np
import PIL.Image


def picture(height, width, seed=0):
    """A smooth picture, so that JPEG changes little."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 5 + seed), np.cos(y / 4 + seed), np.sin((x + y) / 9)]
    return np.rint(np.stack(waves, axis=-1) * 100 + 128).astype(np.uint8)


def encoded(image, kind="PNG", **options):
    image = image if isinstance(image, PIL.Image.Image) else PIL.Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write_folder(folder, named):
    for name, data in named.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder
