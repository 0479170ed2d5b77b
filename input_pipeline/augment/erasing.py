"""Random erasing."""

import math

import numpy as np

from input_pipeline.augment.crop import log_uniform
from input_pipeline.source import Example

_TRIES = 10
# ImageNet's mean and standard deviation: noise of mean 0 and variance 1 there is this in [0, 255].
_MEAN = 255 * np.array([0.485, 0.456, 0.406], np.float32)
_STD = 255 * np.array([0.229, 0.224, 0.225], np.float32)


def random_erasing(
    example: Example,
    rng: np.random.Generator,
    probability: float,
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> Example:
    """Replaces a box by noise, pixel by pixel (Zhong et al. 2020, algorithm 1).

    timm, and DeiT with it, draws standard normal noise once the image has been normalised by
    ImageNet's mean and standard deviation. Here it is drawn in [0, 255] with that mean and
    deviation, rounded, and clipped at both ends (3% of the values); grey gets their averages.

    Args:
        example: its field 'image' is uint8 [h, w, 1 or 3].
        rng: randomness.
        probability: of an image to lose a box.
        area: of the box, as shares of the image's; uniform.
        aspect: height over width; its logarithm is uniform.

    Returns:
        The example; itself if no box was drawn, or none of ten fitted.
    """
    if rng.random() >= probability:
        return example
    image = example["image"]
    height, width, channels = image.shape
    for share, u in rng.random((_TRIES, 2)).tolist():
        pixels = height * width * (area[0] + (area[1] - area[0]) * share)
        ratio = log_uniform(aspect, u)
        h, w = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if h < height and w < width:
            top, left = (rng.random(2) * (height - h + 1, width - w + 1)).astype(int)
            image = image.copy()
            image[top : top + h, left : left + w] = _noise(rng, (h, w, channels))
            return {**example, "image": image}
    return example


def _noise(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    mean, std = (_MEAN, _STD) if shape[2] == 3 else (_MEAN.mean(), _STD.mean())
    values = rng.standard_normal(shape, np.float32) * std + mean
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
