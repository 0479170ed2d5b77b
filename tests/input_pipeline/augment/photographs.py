"""Images with the statistics of photographs: correlated over distances and between channels."""

import cv2
import numpy as np


def photograph(height, width, channels=3, seed=0):
    """uint8 [h, w, c]: noise at many scales, most of it common to the channels."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, channels))
    for scale in (1, 2, 4, 8, 16, 32):
        common = rng.standard_normal((height, width, 1))
        noise = 0.8 * common + 0.3 * rng.standard_normal(total.shape)
        total += cv2.GaussianBlur(noise, (0, 0), scale).reshape(total.shape) * scale**1.5
    low, high = np.quantile(total, (0.02, 0.98))
    return np.clip(10 + 235 * (total - low) / (high - low), 0, 255).astype(np.uint8)
