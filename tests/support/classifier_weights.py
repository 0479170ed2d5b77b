"""Variables of a small classifier, and a comparison of them."""

import jax
import numpy as np

from classifiers.models import presets


def draw(model, size, seed=0):
    rng = np.random.default_rng(seed)
    shapes = presets.variable_shapes(model, (size, size, 3))
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


def same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
