"""Random erasing."""

import math

import numpy as np

from input_pipeline.augment.crop import log_uniform
from input_pipeline.source import Example

_TRIES = 10
# ImageNet's mean and standard deviation per channel, in [0, 255].
_MEAN = 255 * np.array([0.485, 0.456, 0.406], np.float32)
_STD = 255 * np.array([0.229, 0.224, 0.225], np.float32)


def random_erasing(
    example: Example,
    rng: np.random.Generator,
    probability: float,
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> Example:
    """Replaces a box of a uint8 image [h, w, 1 or 3] by noise (Zhong et al. 2020, Algorithm 1).

    The box's area is a uniform share in `area` of the image's; its height over width is log-uniform
    in `aspect`. If none of ten boxes fits, the image stays as it is.

    timm, and so DeiT, fills it with standard normal noise after normalising by ImageNet's mean and
    deviation. Here the noise has that mean and deviation in [0, 255], rounded and clipped at both
    ends (3% of the values); grey images get the channels' average.
    """
    if rng.random() >= probability:
        return example
    image = example["image"]
    height, width, channels = image.shape
    # With area A and aspect r, the sides are sqrt(A r) and sqrt(A / r).
    for share, u in rng.random((_TRIES, 2)).tolist():
        pixels = height * width * (area[0] + (area[1] - area[0]) * share)
        ratio = log_uniform(aspect, u)
        h, w = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if h < height and w < width:
            top, left = (rng.random(2) * (height - h + 1, width - w + 1)).astype(int)
            # The source may keep the original in memory.
            image = image.copy()
            image[top : top + h, left : left + w] = _noise(rng, (h, w, channels))
            return {**example, "image": image}
    return example


def _noise(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    # [h, w, c]; broadcast over the channels.
    mean, std = (_MEAN, _STD) if shape[2] == 3 else (_MEAN.mean(), _STD.mean())
    values = rng.standard_normal(shape, np.float32) * std + mean
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
