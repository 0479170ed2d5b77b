"""An image tower tuned on all devices against one, for test_tower; prints JSON."""

import json
import tempfile
from pathlib import Path

import jax
import numpy as np

from classifiers.tuning import tower
from classifiers.tuning.head import Part
from classifiers.tuning.tower import ImagePart, Tower, trained_parameters
from input_pipeline.source import ArraySource
from launch.runtime.devices.mesh import make_mesh
from tests.classifiers.tuning import test_tower as tiny
from tests.support import tiny_clips

ROWS = 8  # of a batch: one for each device


def main():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2 * ROWS, 8, 8, 3), np.uint8)
    labels = rng.integers(0, 4, len(images))
    with tempfile.TemporaryDirectory() as folder:
        extractor = tiny.imported(tiny_clips.clip(), Path(folder))
        features = rng.normal(size=(len(images), 10)).astype(np.float32)
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        part = Part.make(features, labels, ROWS, tiny.LOSSES[1])
        part = ImagePart(**vars(part), images=ArraySource(images, labels, tuple("abcd")))
        trained = trained_parameters(extractor.variables["params"], "whole")
        found = []
        for devices in (jax.devices()[:1], jax.devices()):
            learning = Tower(extractor, trained, 1.0, make_mesh({"data": -1}, devices))
            kernel, after = tower.tune(tiny.START, [part], "mix", tiny.OPTIMIZER, 2, 0, learning)
            leaves = jax.tree.leaves(jax.device_get(after.variables))
            found.append(np.concatenate([kernel.ravel(), *(np.ravel(leaf) for leaf in leaves)]))
    start = jax.tree.leaves(jax.device_get(extractor.variables))
    start = np.concatenate([tiny.START.ravel(), *(np.ravel(leaf) for leaf in start)])
    result = {
        "devices": jax.device_count(),
        "difference": float(np.abs(found[0] - found[1]).max()),
        "moved": float(np.abs(found[0] - start).max()),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
