"""The Frechet distance orders what it must: fresh real images, the same blurred, noise.

python -m pytest -n 0 -s -m "slow or not slow" tests/imagen_ft/metrics/test_ordering.py

prints the distances; those of photographs are on the real weights of EfficientNet-Lite0.
"""

import cv2
import numpy as np
import pytest
from sklearn.neural_network import MLPClassifier

from classifiers.extractors.classifier import classifier
from classifiers.extractors.extractor import Extractor
from classifiers.extractors.features import features
from classifiers.weights.importing import import_run
from imagen_ft.metrics.frechet import (
    Labelled,
    distance_of_features,
    relative_distance_of_classes,
)
from input_pipeline.source import Subset, Wrapper
from input_pipeline.sources.digits import digits
from input_pipeline.sources.image_folder import ImageFolder
from tests.support.real_images import lite0, photographs

NUM_IMAGES = 500


class Changed(Wrapper):
    """A source whose images something is done to."""

    def __init__(self, source, change):
        super().__init__(source)
        self._change = change

    def __getitem__(self, i):
        example = self._source[i]
        image = self._change(example["image"], int(i))
        return {**example, "image": image.reshape(example["image"].shape)}


def noise(image, i):
    return np.random.default_rng(i).integers(0, 256, image.shape, np.uint8)


def in_order(name, extractor, real, fresh, folder, sigma, few_classes=True):
    """Prints the distances from real images, and looks at their order; within classes too.

    Args:
        name: of the images, to print.
        extractor: of the features.
        real: what is compared with.
        fresh: as many other real images.
        folder: for what is kept.
        sigma: of the blur, in pixels.
        few_classes: whether there are several images of each class.
    """
    sets = {
        "real": real,
        "other real": fresh,
        "blurred": Changed(fresh, lambda image, i: cv2.GaussianBlur(image, (0, 0), sigma)),
        "noise": Changed(fresh, noise),
    }
    found = {
        which: Labelled(features(extractor, source, folder)["features"], source.labels)
        for which, source in sets.items()
    }
    others = [which for which in sets if which != "real"]
    whole = [
        distance_of_features(found[which].features, found["real"].features) for which in others
    ]
    print(f"\n{name}, {len(real)} against {len(fresh)}, on {extractor.name}")
    for which, distance in zip(others, whole, strict=True):
        print(f"  {which:10} {distance:9.4f}, {distance / whole[0]:6.1f} of other real")
    assert 0 < whole[0] < whole[1] < whole[2]
    if not few_classes:
        return
    blurred, noisy = (
        relative_distance_of_classes(found[which], found["other real"], found["real"])
        for which in ("blurred", "noise")
    )
    assert len(blurred) == len(fresh.class_names)
    for label, ratio in blurred.items():
        print(f"  {fresh.class_names[label]:12} blurred {ratio:5.1f}, noise {noisy[label]:5.1f}")
        assert 1 < ratio < noisy[label]


def test_digits(tmp_path):
    """Features are the hidden layer of a network that knows the digits."""
    pool = digits("pool")
    x = pool.images.reshape(len(pool), -1) / 255
    network = MLPClassifier((48,), max_iter=15, random_state=0, learning_rate_init=0.01)
    with pytest.warns(match="Maximum iterations"):
        network.fit(x, pool.labels)
    variables = {
        "kernel": np.float32(network.coefs_[0]),
        "bias": np.float32(network.intercepts_[0])[None],
    }

    def apply(variables, images):
        x = images.reshape(len(images), -1) / np.float32(255)
        return {"features": (x @ variables["kernel"] + variables["bias"]).clip(0)}

    extractor = Extractor("a layer that knows digits", "plain", "trained", apply, variables)
    real, fresh = (Subset(digits(split), np.arange(NUM_IMAGES)) for split in ("pool", "test"))
    in_order("digits", extractor, real, fresh, tmp_path, sigma=1.0)


def network(folder, size):
    """EfficientNet-Lite0 with real weights, for images of `size`."""
    options = dict(model="efficientnet_lite0", pixels="efficientnet_lite", size=size)
    import_run(lite0(folder), str(folder / "run"), "efficientnet", **options)
    return classifier(folder / "run")


@pytest.mark.slow
def test_photographs_of_imagenet(tmp_path):
    folder = photographs("imagenet_sample", tmp_path) / "shorter_side_128"
    images = ImageFolder(folder)
    halves = (Subset(images, np.arange(start, 2 * NUM_IMAGES, 2)) for start in (0, 1))
    in_order("ImageNet", network(tmp_path, 128), *halves, tmp_path, sigma=2.0, few_classes=False)
