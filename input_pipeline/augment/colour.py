"""Random changes of colour: colour jitter, and DeiT III's 3-Augment."""

import numpy as np

from input_pipeline.augment import pixels
from input_pipeline.source import Example

# DeiT III's code (facebookresearch/deit, augment.py), where a colour jitter of 0.3 follows:
# threshold, and the range of the blur's sigma.
_SOLARIZE_FROM = 128  # of 255
_SIGMAS = (0.1, 2.0)  # pixels


def colour_jitter(example: Example, rng: np.random.Generator, strength: float) -> Example:
    """Changes brightness, contrast and saturation of uint8 [h, w, 1 or 3], in random order."""
    # Each factor is uniform in [max(0, 1 - strength), 1 + strength].
    image, low = example["image"], max(0.0, 1 - strength)
    changes = (pixels.brightness, pixels.contrast, pixels.saturation)
    factors = low + (1 + strength - low) * rng.random(len(changes))
    # The three do not commute, so their order is random too, as in torchvision.
    for which in rng.permutation(len(changes)):
        image = changes[which](image, factors[which])
    return {**example, "image": image}


def three_augment(example: Example, rng: np.random.Generator) -> Example:
    """Greyscale, solarisation or blur of uint8 [h, w, 1 or 3] (Touvron et al. 2022, section 4)."""
    image = example["image"]
    # u is drawn in any case, so later steps see the same randomness whichever is chosen.
    which, u = rng.random(2)
    if which < 1 / 3:
        image = pixels.greyscale(image)
    elif which < 2 / 3:
        image = pixels.solarize(image, _SOLARIZE_FROM)
    else:
        image = pixels.blur(image, _SIGMAS[0] + (_SIGMAS[1] - _SIGMAS[0]) * u)
    return {**example, "image": image}
