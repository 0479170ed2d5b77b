"""Whether the Frechet distance orders photographs as it must; prints the distances.

python -m tests.imagen_ft.metrics.ordering imagenet|cifar10

It is on the real weights of EfficientNet-Lite0; IMAGENET_SAMPLE or CIFAR10_SAMPLE may name the zip.
"""

import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

from classifiers.extractors.classifier import classifier
from classifiers.extractors.features import features
from classifiers.weights.importing import import_run
from imagen_ft.metrics.frechet import (
    Labelled,
    distance_of_features,
    relative_distance_of_classes,
)
from input_pipeline.source import Subset, Wrapper
from input_pipeline.sources import subsets
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


def network(folder, size):
    """EfficientNet-Lite0 with real weights, for images of `size`."""
    options = dict(model="efficientnet_lite0", pixels="efficientnet_lite", size=size)
    import_run(lite0(folder), str(folder / "run"), "efficientnet", **options)
    return classifier(folder / "run")


def imagenet(folder):
    """One image a class."""
    images = ImageFolder(photographs("imagenet_sample", folder) / "shorter_side_128")
    halves = (Subset(images, np.arange(start, 2 * NUM_IMAGES, 2)) for start in (0, 1))
    in_order("ImageNet", network(folder, 128), *halves, folder, sigma=2.0, few_classes=False)


def cifar10(folder):
    """300 images of each class, within which the order holds too."""
    zipped = photographs("cifar10_sample", folder)
    sets = (ImageFolder(zipped, root=split) for split in ("train", "test"))
    real, fresh = (subsets.apply(images, {"per_class": 300}) for images in sets)
    in_order("CIFAR-10", network(folder, 64), real, fresh, folder, sigma=1.0)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        {"imagenet": imagenet, "cifar10": cifar10}[sys.argv[1]](Path(folder))
