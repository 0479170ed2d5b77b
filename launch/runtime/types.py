"""Names for what travels between functions."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

# What JAX computes with; NumPy's arrays are as good wherever JAX's are.
Array = jax.Array | np.ndarray
# 'image' uint8 [b, h, w, c] in [0, 255], 'label' int32 [b], 'domain' int32 [b] (0 real, 1
# synthetic), and in evaluation 'mask' bool [b]: False for what fills up the last batch.
Batch = Mapping[str, Array]
# `read(start, stop)` yields this process's rows of those batches of a run.
Reader = Callable[[int, int], Iterable[Batch]]
# A network's collections: 'params', and 'batch_stats' where it has norms of batches.
Variables = dict[str, PyTree]
# What a step tells: scalars, vectors, or dicts of them, by name.
Metrics = Mapping[str, Any]
