"""The Frechet distance orders what it must: fresh real images, the same blurred, noise."""

import os
import subprocess
import sys

import numpy as np
import pytest
from sklearn.neural_network import MLPClassifier

from classifiers.extractors.extractor import Extractor
from input_pipeline.source import Subset
from input_pipeline.sources.digits import digits
from tests.imagen_ft.metrics.ordering import NUM_IMAGES, in_order
from tests.support import ROOT
from tests.support.real_images import lite0, photographs


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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["imagenet", "cifar10"])
def test_photographs(name, tmp_path):
    """In a program of its own, whose network is compiled to run fast."""
    photographs(f"{name}_sample", tmp_path)
    lite0(tmp_path)
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    command = [sys.executable, "-m", "tests.imagen_ft.metrics.ordering", name]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "against" in done.stdout
