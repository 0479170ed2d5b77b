"""Random changes of colour: colour jitter, and the three of DeiT III."""

import numpy as np

from input_pipeline.augment import pixels
from input_pipeline.source import Example

_SOLARIZE_FROM = 128
_SIGMAS = (0.1, 2.0)  # pixels


def colour_jitter(example: Example, rng: np.random.Generator, strength: float) -> Example:
    """Other brightness, contrast and saturation, in random order.

    Args:
        example: its field 'image' is uint8 [h, w, 1 or 3].
        rng: randomness.
        strength: each factor is uniform in [max(0, 1 - strength), 1 + strength].
    """
    image, low = example["image"], max(0.0, 1 - strength)
    changes = (pixels.brightness, pixels.contrast, pixels.saturation)
    factors = low + (1 + strength - low) * rng.random(len(changes))
    for which in rng.permutation(len(changes)):
        image = changes[which](image, factors[which])
    return {**example, "image": image}


def three_augment(example: Example, rng: np.random.Generator) -> Example:
    """One of greyscale, solarisation and blur (Touvron et al. 2022, DeiT III, section 4).

    There a colour jitter of 0.3 follows.

    Args:
        example: its field 'image' is uint8 [h, w, 1 or 3].
        rng: randomness.
    """
    image = example["image"]
    which, u = rng.random(2)
    if which < 1 / 3:
        image = pixels.greyscale(image)
    elif which < 2 / 3:
        image = pixels.solarize(image, _SOLARIZE_FROM)
    else:
        image = pixels.blur(image, _SIGMAS[0] + (_SIGMAS[1] - _SIGMAS[0]) * u)
    return {**example, "image": image}
