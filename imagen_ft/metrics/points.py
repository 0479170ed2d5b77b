"""Two sets of features made ready for distances: in blocks, on the accelerator where there is one.

Float32 features are computed with in float32, on an accelerator by JAX (which may round a product
nowhere below that), else by NumPy; float64 features in float64, by NumPy. Both sets are moved by
the mean of the real one, which changes no distance and keeps digits that the mean would take.
"""

import contextlib
import dataclasses
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from imagen_ft.metrics.statistics import check_finite
from launch.errors import InputError
from launch.runtime.types import Array


@dataclasses.dataclass(frozen=True)
class Points:
    """One set.

    Attributes:
        rows: features, moved.
        norms: squared lengths of the rows.
        xp: whose arrays they are, `numpy` or `jax.numpy`.
    """

    rows: Float[Array, "n d"]
    norms: Float[Array, " n"]
    xp: ModuleType

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: slice | Int[np.ndarray, " n"]) -> "Points":
        return Points(self.rows[which], self.norms[which], self.xp)


def points_of(
    generated: Float[np.ndarray, "n d"], real: Float[np.ndarray, "m d"]
) -> tuple[Points, Points]:
    """Both sets, ready.

    Raises:
        InputError: a set is empty, or has NaN or infinite features.
    """
    for name, features in (("generated features", generated), ("real features", real)):
        if not len(features):
            raise InputError(f"{name} must be of at least one image, got none; check the folder")
        check_finite(name, features)
    dtype = np.float64 if np.float64 in (generated.dtype, real.dtype) else np.float32
    mean = real.mean(axis=0, dtype=np.float64).astype(dtype)
    xp = module(dtype)
    ready = []
    for features in (generated, real):
        rows = features.astype(dtype) - mean
        norms = np.einsum("nd,nd->n", rows, rows)
        ready.append(Points(xp.asarray(rows), xp.asarray(norms), xp))
    return ready[0], ready[1]


def module(dtype: type) -> ModuleType:
    """What computes with arrays of a dtype here: `numpy` or `jax.numpy`."""
    return jnp if jax.default_backend() != "cpu" and dtype == np.float32 else np


def full_precision() -> contextlib.AbstractContextManager:
    """Within it JAX's products of float32 are as exact as NumPy's."""
    return jax.default_matmul_precision("highest")


def squared_distances(a: Points, b: Points) -> Float[Array, "n m"]:
    """Of all pairs; 0 where it is below the rounding, as for equal rows."""
    xp = a.xp
    with full_precision():
        squares = a.rows @ b.rows.T
    squares *= -2
    squares += a.norms[:, None]
    squares += b.norms[None, :]
    rounding = xp.finfo(squares.dtype).eps * a.rows.shape[1] ** 0.5
    return xp.where(squares <= rounding * a.norms[:, None], 0, squares)


def blocks(count: int, size: int) -> list[slice]:
    """Slices of at most `size` that make up `count`."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def is_own(rows: Int[np.ndarray, " n"], columns: slice, xp: ModuleType) -> Bool[Array, "n m"]:
    """Which pairs are a point and itself, by the rows' positions among the columns."""
    return xp.asarray(rows[:, None] == np.arange(columns.start, columns.stop)[None, :])
