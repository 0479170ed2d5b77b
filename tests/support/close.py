"""Two programs that compute the same thing."""

from typing import Any

import jax
import numpy as np

# Two compiled forms of one network differ by up to 1e-6 of its output's scale, depending on the
# processor's instructions and the number of threads; this leaves a margin of ten.
ROUNDING = 1e-5


def assert_same_up_to_rounding(found: Any, expected: Any, share: float = ROUNDING) -> None:
    """Compares arrays, or trees of them, relative to the largest expected value."""
    scale = max(np.abs(np.asarray(leaf)).max() for leaf in jax.tree.leaves(expected))

    def compare(ours: Any, theirs: Any) -> None:
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=share * scale)

    jax.tree.map(compare, found, expected)
