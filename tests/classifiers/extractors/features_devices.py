"""Features on all devices against one, for test_features; prints JSON."""

import json
import tempfile

import jax
import numpy as np

from classifiers.extractors.features import features
from launch.runtime.devices.mesh import make_mesh
from tests.classifiers.extractors.test_features import extractor, source


def main():
    one = make_mesh({}, jax.devices()[:1])
    found = []
    for mesh in (one, None):
        with tempfile.TemporaryDirectory() as folder:
            found.append(features(extractor(), source(), folder, ("spatial",), 10, mesh)["spatial"])
    difference = float(np.abs(found[0] - found[1]).max())
    print(json.dumps({"devices": jax.device_count(), "difference": difference}))


if __name__ == "__main__":
    main()
