"""Types of what functions exchange."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

# NumPy arrays are accepted wherever JAX arrays are.
Array = jax.Array | np.ndarray
# 'image' uint8 [b, h, w, c] in [0, 255], 'label' int32 [b], 'domain' int32 [b] (0 real, 1
# synthetic); in evaluation also 'mask' bool [b], False for rows that only fill up the last batch.
Batch = Mapping[str, Array]
# `read(start, stop)` yields this process's rows of batches start to stop - 1 of a run.
Reader = Callable[[int, int], Iterable[Batch]]
# A network's collections: 'params', and 'batch_stats' if it has batch norms.
Variables = dict[str, PyTree]
# What a step reports: scalars, vectors, or dicts of scalars, by name.
Metrics = Mapping[str, Any]
