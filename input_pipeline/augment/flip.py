"""Random mirror images."""

from typing import Any

import cv2
import numpy as np


def random_flip(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Exchanges left and right in every other image.

    Args:
        example: its field 'image' is [h, w, c].
        rng: randomness.
    """
    if rng.random() < 0.5:
        return example
    image = example["image"]
    # A view with a negative step would cost every later copy of it 25 times this.
    return {**example, "image": cv2.flip(image, 1).reshape(image.shape)}
