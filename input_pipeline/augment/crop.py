"""Random crops."""

from typing import Any

import numpy as np


def random_shift(
    example: dict[str, Any], rng: np.random.Generator, max_shift: int
) -> dict[str, Any]:
    """Pads the image with zeros and crops it back at a random place (He et al. 2016, section 4.2).

    Args:
        example: its field 'image' is [h, w, c].
        rng: randomness.
        max_shift: pixels of padding on every side; the shift is uniform up to it.
    """
    image = example["image"]
    height, width, _ = image.shape
    top, left = rng.integers(0, 2 * max_shift + 1, size=2)
    padded = np.pad(image, ((max_shift, max_shift), (max_shift, max_shift), (0, 0)))
    return {**example, "image": padded[top : top + height, left : left + width]}
