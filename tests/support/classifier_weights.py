"""Variables of a small classifier, and their comparison."""

import numpy as np

from classifiers.models import presets


def shapes_of(model, size):
    return presets.variable_shapes(model, (size, size, 3))


def draw(model, size, seed=0):
    rng = np.random.default_rng(seed)
    normal = lambda leaf: rng.normal(size=leaf.shape).astype(np.float32)  # noqa: E731
    return _map(normal, shapes_of(model, size))


def _map(function, tree):
    if isinstance(tree, dict):
        return {name: _map(function, leaf) for name, leaf in tree.items()}
    return function(tree)


def same(ours, theirs):
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for name in ours:
            same(ours[name], theirs[name])
    else:
        np.testing.assert_array_equal(ours, theirs)
