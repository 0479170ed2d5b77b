"""Random mirror images."""

from typing import Any

import numpy as np


def random_flip(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Exchanges left and right in every other image.

    Args:
        example: its field 'image' is [h, w, c].
        rng: randomness.
    """
    if rng.random() < 0.5:
        return example
    return {**example, "image": example["image"][:, ::-1]}
